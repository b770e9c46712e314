"""A text file is a document, however long it is; one of lines alone is a row a line."""

import gzip
from pathlib import Path

import pytest

from qlora_space.core.errors import DatasetError
from qlora_space.data import open_source
from qlora_space.data.reading.html_text import text_of_html
from tests.data.reading.conftest import notes, read, values

PROSE = "CHAPTER 1\n\nIt was late in May.\nNobody came.\n\nThen it rained.\n"
WRAPPED = (
    "Late in May at Jarnfield they brought out the chard, and there\n"
    "was tea afterwards. On wet days at Elmfold they brought out the\n"
    "asters, and the gate stayed open. On wet days at Rushden nobody\n"
    "touched the leeks, and the rain held off. Before noon at Rushden\n"
    "nobody touched the poppies.\n"
)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.MD", "a.txt.gz"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_paragraphs_are_one_document_and_its_line_ends_are_line_feeds(
    tmp_path: Path, name: str, line_end: str
) -> None:
    content = PROSE.replace("\n", line_end).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    (row,) = read(tmp_path / name)
    assert (row.values, row.location) == ({"text": PROSE.rstrip()}, name)
    assert (row.begins, row.ends) == (True, True)
    assert notes(tmp_path / name) == {}
    assert open_source(str(tmp_path / name), allow_local=True).num_rows == 1


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("emma\nolivia\nava\n", ["emma", "olivia", "ava"]),
        ("The sky is blue.\nGrass is green.\n", ["The sky is blue.", "Grass is green."]),
        ("long " * 100 + "\n" + "line " * 90, [("long " * 100), "line " * 90]),
    ],
)
def test_lines_without_blank_ones_are_rows_and_it_is_said(
    tmp_path: Path, content: str, texts: list[str]
) -> None:
    (tmp_path / "a.txt").write_text(content)
    rows = read(tmp_path / "a.txt")
    assert [row.values["text"].strip() for row in rows] == [text.strip() for text in texts]
    assert rows[1].location == "a.txt, line 2"
    assert "each of its lines is read as a row" in notes(tmp_path / "a.txt")["row_a_line"]
    (tmp_path / "a.txt").rename(tmp_path / "a.md")
    assert len(read(tmp_path / "a.md")) == 1


@pytest.mark.parametrize("content", [WRAPPED, "one line of text", "one\n"])
def test_prose_in_lines_of_one_length_is_a_document(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    assert values(tmp_path / "a.txt") == [{"text": content.rstrip()}]


@pytest.mark.parametrize("gap", ["\n\n", "\n", " "])
def test_a_long_document_is_read_in_consecutive_parts_of_whole_words(
    tmp_path: Path, gap: str
) -> None:
    content = gap.join(f"word{number}" for number in range(500_000))
    (tmp_path / "a.md").write_text(content)
    rows = read(tmp_path / "a.md")
    assert len(rows) > 3
    assert "".join(row.values["text"] for row in rows) == content
    assert max(len(row.values["text"]) for row in rows) <= 2**20
    assert all(row.values["text"].endswith(gap) for row in rows[:-1])
    assert [(row.begins, row.ends) for row in rows] == [
        (at == 0, at == len(rows) - 1) for at in range(len(rows))
    ]
    assert rows[1].location == "a.md, part 2"


def test_a_file_of_white_space_has_no_rows(tmp_path: Path) -> None:
    for name in ("a.txt", "a.md", "a.html"):
        (tmp_path / name).write_text(" \n\n \n")
        assert read(tmp_path / name) == []


def test_a_document_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    for name in ("a.md", "a.html"):
        (tmp_path / name).write_bytes(b"caf\xe9\n\nis good")
        (row,) = read(tmp_path / name)
        assert row.problem is not None
        assert row.problem.message.startswith(f"{name} is not valid UTF-8: it may be Windows-1252")


def test_a_folder_of_pages_has_a_row_for_each(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.html").write_text(f"<p>page {number}</p>")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "more.md").write_text("# More\n\ntext")
    (tmp_path / "README.md").write_text("About these pages")
    assert [row["text"] for row in values(tmp_path)] == [
        "page 0", "page 1", "page 2", "# More\n\ntext",
    ]  # fmt: skip
    assert "README.md" in notes(tmp_path)["files_about_data"]


PAGE = """<!DOCTYPE html><html><head><title>Leeks</title><meta charset="utf-8">
<style>p { color: red }</style><script>if (1 < 2) document.write("<p>no</p>")</script></head>
<body><!-- not <p>this</p> --><h1>About   leeks</h1>
<p>They grow in <b>rows</b>, &amp; slowly;
caf&eacute; &lt;b&gt;.<br>Then</p><ul><li>one</li><li>two <a href="x">link</a></li></ul>
<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>
<pre>  kept
    as it is</pre><svg><text>no</text></svg><![if !mso]>seen<![endif]><div>last</div>end</body></html>"""


def test_the_text_of_a_page_is_what_people_read() -> None:
    assert text_of_html(PAGE) == (
        "About leeks\n\nThey grow in rows, & slowly; café <b>.\nThen\n\n- one\n- two link\n\n"
        "a\tb\nc\td\n\n  kept\n    as it is\n\nseen\nlast\nend"
    )


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("plain", "plain"),
        ("a &lt b &#65; &bogus;", "a < b A &bogus;"),
        ("one <p", "one"),
        ("one<!-- two", "one"),
        ("one<script>two", "one"),
        ("1 < 2 <p>three", "1 < 2\n\nthree"),
        ("<![x[ two ]]> one", "<![x[ two ]]> one"),
        ("x" * 70_000 + "<p>y", "x" * 70_000 + "\n\ny"),
        ("<img alt='" + "x" * 200_000 + "'>y", "y"),
        ("", ""),
    ],
)
def test_broken_pages_are_read_as_far_as_they_go(page: str, text: str) -> None:
    assert text_of_html(page) == text


def test_a_page_that_is_too_long_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<p>word</p>" * 2**20)
    with pytest.raises(DatasetError, match=r"a\.html is longer than 8 MiB"):
        read(tmp_path / "a.html")
