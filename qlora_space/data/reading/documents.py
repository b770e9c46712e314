"""Text, Markdown and HTML files: each is one document. A text file of lines alone holds one row a line."""

import re
from collections.abc import Iterator
from io import TextIOWrapper

from qlora_space.core.errors import DatasetError
from qlora_space.data.reading.html_text import text_of_html
from qlora_space.data.reading.streams import MAX_ROW_BYTES, DataFile, located_lines, too_long
from qlora_space.data.rows import Row, is_utf8, not_utf8

# A longer document is several rows, so that little is in memory; in training it is still one.
_MAX_PART_CHARS = 2**20
_PROBE_CHARS = 2**20
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
_SPACE = re.compile(r"\s")
_SENTENCE_END = re.compile(r"[.!?…:;。！？]['\"”’»)\]]*$")
# Prose with a line end after so many characters: most lines are nearly full and end within a sentence.
_LONGEST_WRAPPED, _FULL, _MOST = 140, 0.6, 0.6


def read_document(file: DataFile, text: TextIOWrapper) -> Iterator[Row]:
    """The whole file in one row; in consecutive ones if it is long. A .txt of lines: a row a line."""
    if is_by_line(file, text):
        yield from _rows_of_lines(file, text)
        return
    before, number = "", 0
    for part in _parts(file, text):
        if before:
            number += 1
            yield _row(file, number, before, ends=False)
        before = part
    if before:
        yield _row(file, number + 1, before, ends=True)


def read_html(file: DataFile, text: TextIOWrapper) -> Iterator[Row]:
    """The text of the page in one row."""
    page = text.read(MAX_ROW_BYTES + 1)
    if len(page) > MAX_ROW_BYTES:
        raise too_long(file.name)
    if not is_utf8(page):
        yield Row(1, file.name, {}, not_utf8(file.name, page))
    elif content := text_of_html(page):
        yield Row(1, file.name, {"text": content})


def is_by_line(file: DataFile, text: TextIOWrapper) -> bool:
    """Whether each line is a row: a .txt without blank lines that is no prose of lines of one length."""
    if file.kind != "txt":
        return False
    probe = text.read(_PROBE_CHARS).strip()
    text.seek(0)
    if _BLANK_LINE.search(probe):
        return False
    lines = [line.strip() for line in probe.split("\n")]
    return len(lines) > 1 and not _is_wrapped(lines)


def _is_wrapped(lines: list[str]) -> bool:
    longest = max(map(len, lines))
    if longest > _LONGEST_WRAPPED or len(lines) < 3:
        return False
    full = sum(len(line) >= _FULL * longest for line in lines)
    cut = sum(" " in line and not _SENTENCE_END.search(line) for line in lines)
    return min(full, cut) >= _MOST * len(lines)


def _rows_of_lines(file: DataFile, text: TextIOWrapper) -> Iterator[Row]:
    for number, location, line in located_lines(file, text):
        if is_utf8(line):
            yield Row(number, location, {"text": line.strip("\r\n")})
        else:
            yield Row(number, location, {}, not_utf8(location, line))


def _parts(file: DataFile, text: TextIOWrapper) -> Iterator[str]:
    """Together the file; cut after a paragraph, a line or a word."""
    held = ""
    while more := text.read(_MAX_PART_CHARS):
        held += more
        while len(held) > _MAX_PART_CHARS and (end := _end_of_part(held)):
            yield held[:end]
            held = held[end:]
        if len(held) > MAX_ROW_BYTES:
            raise DatasetError(
                f"{file.name} has {MAX_ROW_BYTES // 2**20} MiB without a space or a line end.",
                "Use a file of real text.",
            )
    if held.strip():
        yield held


def _end_of_part(text: str) -> int:
    """0 if there is no place to cut."""
    for gap in ("\n\n", "\n", " "):
        at = text.rfind(gap, _MAX_PART_CHARS // 2, _MAX_PART_CHARS)
        if at >= 0:
            return at + len(gap)
    space = _SPACE.search(text, _MAX_PART_CHARS // 2)
    return space.end() if space else 0


def _row(file: DataFile, number: int, text: str, ends: bool) -> Row:
    begins = number == 1
    location = file.name if begins and ends else f"{file.name}, part {number}"
    if not is_utf8(text):
        return Row(number, location, {}, not_utf8(location, text))
    text = text.lstrip("\ufeff\n") if begins else text
    text = text.rstrip() if ends else text
    return Row(number, location, {"text": text}, begins=begins, ends=ends)
