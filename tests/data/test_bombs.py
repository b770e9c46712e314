"""Files that are small on disk and huge in memory: each is refused by a child under watch."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
_MOST_SECONDS = 10
_MOST_MIB = 512
_READ = """
import json, pathlib, sys, time
from qlora_space.data import open_source
from qlora_space.errors import DatasetError
started, told, rows = time.monotonic(), "", 0
try:
    source = open_source(sys.argv[1], allow_local=True)
    source.num_rows
    for row in source.rows():
        rows += 1
except DatasetError as error:
    told = str(error)
# Not ru_maxrss: a child begins with its parent's.
status = pathlib.Path("/proc/self/status").read_text()
peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
print(json.dumps([told, rows, time.monotonic() - started, peak]))
"""
MIB = 2**20


def _gzip_of_one_line(folder: Path) -> Path:
    file = folder / "line.jsonl.gz"
    with gzip.open(file, "wb", 6) as stream:
        stream.write(b'{"text": "')
        for _ in range(256):
            stream.write(b"a" * MIB)
    return file


def _gzip_of_many_rows(folder: Path) -> Path:
    file = folder / "rows.jsonl.gz"
    block = b'{"text": "' + b"a" * 10_000 + b'"}\n'
    with gzip.open(file, "wb", 6) as stream:
        for _ in range(256):
            stream.write(block * 100)
    return file


def _zstd_of_many_rows(folder: Path) -> Path:
    file = folder / "rows.csv.zst"
    with pa.CompressedOutputStream(str(file), "zstd") as stream:
        stream.write(b"prompt,completion\n")
        for _ in range(200):
            stream.write(b"what,that\n" * 100_000)
    return file


def _plain_line(folder: Path) -> Path:
    file = folder / "line.jsonl"
    with file.open("wb") as stream:
        stream.write(b'{"text": "')
        stream.truncate(2**30)  # sparse: zeros that take no disk
    return file


def _plain_line_of_text(folder: Path) -> Path:
    return _plain_line(folder).rename(folder / "line.txt")


def _plain_array(folder: Path) -> Path:
    file = folder / "array.json"
    file.write_bytes(b'[{"text": [' + b"[]," * 20 * MIB)
    return file


def _line_of_empty_lists(folder: Path) -> Path:
    file = folder / "lists.jsonl"
    file.write_bytes(b'{"text": [' + b"[]," * 20 * MIB)
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
    pq.write_table(pa.table({"text": ["a" * 240 * MIB]}), file, compression="zstd")
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
    table = pa.table({"text": ["a" * 240 * MIB]})
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
    (_parquet_page, "unpacks to 240 MiB"),
    (_parquet_prefixes, "more than 200 times its size"),
    (_parquet_of_many_columns, "12,000 columns"),
    (_arrow_packed, "unpacks to more than"),
    (_arrow_dictionary, "more than 200 times its size"),
    (_arrow_of_nothing, "more than 200 times its size"),
)


@pytest.mark.parametrize(
    ("make", "sentence"), BOMBS, ids=[make.__name__.strip("_") for make, _ in BOMBS]
)
def test_a_bomb_is_refused_in_one_sentence_at_little_cost(
    tmp_path: Path, make: Callable[[Path], Path], sentence: str
) -> None:
    file = make(tmp_path)
    command = [sys.executable, "-c", _READ, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    told, _, seconds, peak_mib = json.loads(done.stdout)
    assert file.name in told
    assert "\n" not in told
    assert sentence in told
    assert seconds < _MOST_SECONDS
    assert peak_mib < _MOST_MIB
