"""Files that are small on disk and huge in memory: each is refused by a child under watch."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
_MOST_SECONDS = 10  # of CPU: how long one waits also depends on who else computes
_MOST_MIB = 512
# One process does the imports and reads each file in a fork: what one took is not counted for the next.
_READERS = """
import json, os, pathlib, sys, time
from qlora_space.data import open_source
from qlora_space.core.errors import DatasetError

def read(file):
    started, message = time.process_time(), ""
    try:
        source = open_source(file, allow_local=True)
        source.num_rows
        for row in source.rows():
            pass
    except DatasetError as error:
        message = str(error)
    # Not ru_maxrss: a child begins with its parent's.
    status = pathlib.Path("/proc/self/status").read_text()
    peak_mib = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps([message, time.process_time() - started, peak_mib]), flush=True)

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        read(line.strip())
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        print(json.dumps(["died", 0, 0]), flush=True)
"""
MIB = 2**20


def _gzip_of_one_line(folder: Path) -> Path:
    file = folder / "line.jsonl.gz"
    with gzip.open(file, "wb", 6) as stream:
        stream.write(b'{"text": "')
        for _ in range(64):
            stream.write(b"a" * MIB)
    return file


def _gzip_of_many_rows(folder: Path) -> Path:
    file = folder / "rows.jsonl.gz"
    block = b'{"text": "' + b"a" * 10_000 + b'"}\n'
    with gzip.open(file, "wb", 6) as stream:
        for _ in range(64):
            stream.write(block * 100)
    return file


def _zstd_of_many_rows(folder: Path) -> Path:
    file = folder / "rows.csv.zst"
    with pa.CompressedOutputStream(str(file), "zstd") as stream:
        stream.write(b"prompt,completion\n")
        for _ in range(60):
            stream.write(b"what,that\n" * 100_000)
    return file


def _plain_line(folder: Path) -> Path:
    file = folder / "line.jsonl"
    with file.open("wb") as stream:
        stream.write(b'{"text": "')
        stream.truncate(128 * MIB)  # sparse: zeros that take no disk
    return file


def _plain_line_of_text(folder: Path) -> Path:
    return _plain_line(folder).rename(folder / "line.txt")


def _plain_array(folder: Path) -> Path:
    file = folder / "array.json"
    file.write_bytes(b'[{"text": [' + b"[]," * 4 * MIB)
    return file


def _line_of_empty_lists(folder: Path) -> Path:
    file = folder / "lists.jsonl"
    file.write_bytes(b'{"text": [' + b"[]," * 4 * MIB)
    return file


def _one_object(folder: Path) -> Path:
    file = folder / "object.json"
    file.write_bytes(b'{\n"text": [' + b"[]," * 9 * MIB + b"[]]}")
    return file


def _deep(folder: Path) -> Path:
    file = folder / "deep.jsonl"
    file.write_text('{"a": ' * 500 + "1" + "}" * 500 + "\n")
    return file


def _csv_of_many_columns(folder: Path) -> Path:
    file = folder / "columns.csv"
    header = ",".join(f"c{index}" for index in range(1_000_000))
    file.write_text(header + "\n" + "," * 999_999 + "\n")
    return file


def _json_of_many_columns(folder: Path) -> Path:
    file = folder / "columns.jsonl"
    file.write_text(json.dumps({f"{index}": 0 for index in range(500_000)}) + "\n")
    return file


def _unclosed_quote(folder: Path) -> Path:
    file = folder / "quote.csv"
    file.write_bytes(b'a,b\n"' + b"word word word\n" * 4 * MIB)
    return file


def _parquet_dictionary(folder: Path) -> Path:
    """20,000 rows that say the same megabyte."""
    file = folder / "dictionary.parquet"
    value = pa.array(["".join(chr(97 + i % 26) for i in range(MIB))])
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), value)
    pq.write_table(pa.table({"text": rows}), file, compression="zstd")
    return file


def _parquet_dictionary_of_a_long_word(folder: Path) -> Path:
    file = folder / "word.parquet"
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 10, pa.int32()), ["a" * 70 * MIB])
    pq.write_table(pa.table({"text": rows}), file, compression="zstd")
    return file


def _parquet_page(folder: Path) -> Path:
    file = folder / "page.parquet"
    pq.write_table(pa.table({"text": ["a" * 120 * MIB]}), file, compression="zstd")
    return file


def _parquet_prefixes(folder: Path) -> Path:
    """Each value is the one before it and nothing more."""
    file = folder / "prefixes.parquet"
    table = pa.table({"text": ["a" * 100_000] * 5_000})
    pq.write_table(table, file, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})
    return file


def _parquet_of_many_columns(folder: Path) -> Path:
    file = folder / "columns.parquet"
    columns = {f"c{index}": [1] for index in range(12_000)}
    pq.write_table(pa.table(columns), file)
    return file


def _arrow_packed(folder: Path) -> Path:
    file = folder / "packed.arrow"
    table = pa.table({"text": ["a" * 120 * MIB]})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(str(file), table.schema, options=options) as writer:
        writer.write_table(table)
    return file


def _arrow_dictionary(folder: Path) -> Path:
    file = folder / "dictionary.arrow"
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), ["a" * MIB])
    table = pa.table({"text": rows})
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table)
    return file


def _arrow_of_nothing(folder: Path) -> Path:
    """A billion nulls have no bytes at all."""
    file = folder / "nothing.arrow"
    table = pa.table({"text": pa.nulls(2_000_000_000)})
    with pa.ipc.new_stream(str(file), table.schema) as writer:
        writer.write_table(table)
    return file


BOMBS: tuple[tuple[Callable[[Path], Path], str], ...] = (
    (_gzip_of_one_line, "more than 200 times its size"),
    (_gzip_of_many_rows, "more than 200 times its size"),
    (_zstd_of_many_rows, "more than 200 times its size"),
    (_plain_line, "line 1 is longer than 8 MiB"),
    (_plain_line_of_text, "line 1 is longer than 8 MiB"),
    (_plain_array, "longer than 8 MiB"),
    (_line_of_empty_lists, "line 1 is longer than 8 MiB"),
    (_one_object, "one JSON object that is too large"),
    (_deep, "nested too deeply"),
    (_csv_of_many_columns, "columns"),
    (_json_of_many_columns, "500,000 columns"),
    (_unclosed_quote, "longer than 8 MiB"),
    (_parquet_dictionary, "more than 200 times its size"),
    (_parquet_dictionary_of_a_long_word, "row 1 is longer than 8 MiB"),
    (_parquet_page, "unpacks to 120 MiB"),
    (_parquet_prefixes, "more than 200 times its size"),
    (_parquet_of_many_columns, "12,000 columns"),
    (_arrow_packed, "unpacks to more than"),
    (_arrow_dictionary, "more than 200 times its size"),
    (_arrow_of_nothing, "more than 200 times its size"),
)


# Another of the same kind stays in the default suite.
COSTLY = (
    _gzip_of_one_line,
    _plain_line_of_text,
    _plain_array,
    _parquet_dictionary_of_a_long_word,
    _arrow_of_nothing,
)


@pytest.fixture(scope="module")
def readers() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _READERS]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.communicate()


def _cases() -> Iterator[object]:
    for make, sentence in BOMBS:
        marks = [pytest.mark.slow] if make in COSTLY else []
        yield pytest.param(make, sentence, id=make.__name__.strip("_"), marks=marks)


@pytest.mark.parametrize(("make", "sentence"), _cases())
def test_a_bomb_is_refused_in_one_sentence_at_little_cost(
    tmp_path: Path,
    readers: subprocess.Popen[str],
    make: Callable[[Path], Path],
    sentence: str,
) -> None:
    file = make(tmp_path)
    assert readers.stdin
    assert readers.stdout
    readers.stdin.write(f"{file}\n")
    readers.stdin.flush()
    message, seconds, peak_mib = json.loads(readers.stdout.readline())
    assert file.name in message
    assert "\n" not in message
    assert sentence in message
    assert seconds < _MOST_SECONDS
    assert peak_mib < _MOST_MIB
