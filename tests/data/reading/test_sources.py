import gzip
import io
import json
import random
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_space.core.errors import DatasetError, QloraSpaceError
from qlora_space.core.facts import ModelFacts
from qlora_space.core.request import TrainingRequest
from qlora_space.data import Row, inspect_dataset, open_source
from qlora_space.data.reading.json_values import iterate_json_values
from qlora_space.data.tokenize_rows import detect_format
from tests.fake_hub import FakeHub

ROWS = [{"prompt": f"question {i}", "completion": f'an "answer", {i}\nwith é'} for i in range(5)]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=20)


def read(path: Path, split: str | None = None) -> list[Row]:
    return list(open_source(str(path), split=split, allow_local=True).rows())


def values(path: Path) -> list[dict[str, Any]]:
    return [row.values for row in read(path)]


def csv_text(rows: list[dict[str, str]], delimiter: str) -> str:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(delimiter.join(map(cell, line)) + "\n" for line in lines)


def write(folder: Path, kind: str, rows: list[dict[str, str]]) -> Path:
    file = folder / f"rows.{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    match kind:
        case "jsonl":
            file.write_text(lines)
        case "jsonl.gz":
            file.write_bytes(gzip.compress(lines.encode()))
        case "json":
            file.write_text(json.dumps(rows, indent=1))
        case "csv":
            file.write_text(csv_text(rows, ","), encoding="utf-8")
        case "tsv":
            file.write_text(csv_text(rows, "\t"), encoding="utf-8")
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        case "arrow":
            table = pa.Table.from_pylist(rows)
            with pa.ipc.new_stream(str(file), table.schema) as writer:
                writer.write_table(table)
    return file


KINDS = ("jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet", "arrow")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
def test_every_kind_of_file_gives_back_the_rows_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, kind: str, texts: list[tuple[str, str]]
) -> None:
    rows = [{"prompt": a, "completion": b} for a, b in texts]
    file = write(tmp_path_factory.mktemp("k"), kind, rows)
    assert values(file) == rows
    assert open_source(str(file), allow_local=True).num_rows == len(rows)


@settings(max_examples=150)
@given(
    content=st.binary(max_size=300)
    | st.text('[]{}",:\\n1a ', max_size=80).map(str.encode)
    | st.text('a",;\n\t', max_size=80).map(str.encode),
    kind=st.sampled_from((*KINDS, "txt", "csv.gz", "json.gz")),
)
def test_any_bytes_give_rows_or_one_sentence_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str
) -> None:
    file = tmp_path_factory.mktemp("f") / f"odd.{kind}"
    file.write_bytes(content)
    failure: QloraSpaceError | None = None
    rows: list[Row] = []
    try:
        rows = read(file)
        open_source(str(file), allow_local=True).count()
    except QloraSpaceError as error:
        failure = error
    assert failure is None or ("odd." in failure.what and "\n" not in str(failure))
    assert all(isinstance(row.values, dict) for row in rows)


def test_malformed_json_is_reported_with_file_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"text": "a"}\n\n{"text": "b"\n')
    with pytest.raises(DatasetError, match=r"train\.jsonl, line 3 is not valid JSON.*column"):
        read(file)


def test_malformed_json_inside_an_array_is_reported_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text('[\n{"text": "a"},\n{"text": b}\n]')
    with pytest.raises(DatasetError, match=r"train\.json, line 3 is not valid JSON"):
        read(file)


def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    for name in ("deep.jsonl", "deep.json"):
        (tmp_path / name).write_text("[" * 100_000)
        with pytest.raises(DatasetError, match="deep"):
            read(tmp_path / name)


def test_a_large_json_array_is_read_in_pieces(tmp_path: Path) -> None:
    rows = [{"n": i, "text": "x" * 1000} for i in range(1500)]
    (tmp_path / "big.json").write_text(json.dumps(rows))
    assert values(tmp_path / "big.json") == rows


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.csv").write_bytes(mark + b"text,label\nhi,1\n")
    (tmp_path / "b.jsonl").write_bytes(mark + b'{"text": "hi"}\n')
    (tmp_path / "c.json").write_bytes(mark + b'[{"text": "hi"}]')
    assert values(tmp_path / "a.csv") == [{"text": "hi", "label": "1"}]
    assert values(tmp_path / "b.jsonl") == values(tmp_path / "c.json") == [{"text": "hi"}]


@pytest.mark.parametrize(
    "content",
    [
        [{"q": "a", "n": 1}, {"q": "b", "n": 2}],
        {"q": ["a", "b"], "n": [1, 2]},
        {"data": [{"q": "a", "n": 1}, {"q": "b", "n": 2}], "version": "1"},
        {"train": [{"q": "a", "n": 1}, {"q": "b", "n": 2}], "test": [{"q": "c", "n": 3}]},
        {"q": {"0": "a", "1": "b"}, "n": {"0": 1, "1": 2}},
        {"x7": {"q": "a", "n": 1}, "x8": {"q": "b", "n": 2}},
    ],
    ids=["array", "columns", "data", "splits", "pandas", "named"],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_file_holds_its_rows_in_any_usual_shape(
    tmp_path: Path, content: object, indent: int | None
) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(content, indent=indent))
    assert values(file) == [{"q": "a", "n": 1}, {"q": "b", "n": 2}]


def test_a_row_that_is_a_list_of_turns_is_a_conversation(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "a.jsonl").write_text(json.dumps(turns) + "\n")
    (tmp_path / "b.json").write_text(json.dumps([turns]))
    assert values(tmp_path / "a.jsonl") == values(tmp_path / "b.json") == [{"messages": turns}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_row_that_is_not_utf8_is_named_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    content = {
        "a.jsonl": b'{"text": "caf\xe9"}\n{"text": "good"}\n',
        "a.csv": b"text\ncaf\xe9\ngood\n",
        "a.txt": b"caf\xe9\ngood\n",
    }[name]
    (tmp_path / name).write_bytes(content)
    bad, good = read(tmp_path / name)
    assert bad.problem is not None
    assert bad.problem.code == "not_utf8"
    assert name in bad.problem.message
    assert "Windows-1252" in bad.problem.message
    assert good.values == {"text": "good"}


@pytest.mark.parametrize("encoding", ["gbk", "big5", "shift_jis", "euc-kr"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.md"])
def test_a_file_in_an_east_asian_encoding_is_said_to_be_in_one(
    tmp_path: Path, name: str, encoding: str
) -> None:
    text = {
        "gbk": "你好，世界",
        "big5": "你好世界",
        "shift_jis": "こんにちは",
        "euc-kr": "안녕하세요",
    }[encoding]
    row = json.dumps({"text": text}, ensure_ascii=False) if name == "a.jsonl" else text
    (tmp_path / name).write_bytes(f"{'text' if name == 'a.csv' else row}\n{row}\n".encode(encoding))
    source = open_source(str(tmp_path / name), allow_local=True)
    with pytest.raises(DatasetError, match="it may be GBK, Big5 or another") as refused:
        detect_format(source, source.rows(), None, None)
    assert "iconv" in refused.value.hint


def test_half_a_character_is_of_no_other_encoding(tmp_path: Path) -> None:
    half = "\ud83d"
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d"}\n')
    (tmp_path / "a.txt").write_bytes(half.encode("utf-16", "surrogatepass"))
    for name in ("a.jsonl", "a.txt"):
        (row,) = read(tmp_path / name)
        assert row.problem is not None
        assert row.problem.message.endswith("is not valid UTF-8.")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "txt", "md", "html"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, kind: str, encoding: str) -> None:
    content = {
        "csv": "text\r\nné\r\n日本語\r\n",
        "jsonl": '{"text": "né"}\r\n\r\n{"text": "日本語"}\r\n',
        "json": '[\n{"text": "né"},\n{"text": "日本語"}\n]',
        "txt": "né\r\n日本語\r\n",
        "md": "né\r\n\r\n日本語\r\n",
        "html": "<p>né</p><p>日本語</p>",
    }[kind]
    file = tmp_path / f"a.{kind}"
    file.write_bytes(content.encode(encoding))
    texts = [row["text"] for row in values(file)]
    assert texts == (["né\n\n日本語"] if kind in ("md", "html") else ["né", "日本語"])
    assert open_source(str(file), allow_local=True).num_rows == len(texts)


def test_utf16_without_a_mark_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text\nhi\n".encode("utf-16-le"))
    with pytest.raises(DatasetError, match="UTF-16"):
        read(tmp_path / "a.csv")


def test_odd_quoting_in_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('q;a\n"say ""hi""; now";"two\nlines"\nplain;"";\nx;y\n')
    first, wrong, last = read(tmp_path / "a.csv")
    assert first.values == {"q": 'say "hi"; now', "a": "two\nlines"}
    assert wrong.problem is not None
    assert wrong.problem.message == "a.csv, line 4 has 3 cells, the header has 2."
    assert (last.location, last.values) == ("a.csv, line 5", {"q": "x", "a": "y"})


def test_a_folder_has_the_splits_of_its_file_names(tmp_path: Path) -> None:
    for name, count in (("train-0.jsonl", 3), ("train-1.jsonl", 2), ("test.jsonl", 1)):
        write(tmp_path, "jsonl", ROWS[:count]).rename(tmp_path / name)
    source = open_source(str(tmp_path), allow_local=True)
    assert (source.splits, source.eval_split, source.num_rows) == (("train", "test"), "test", 5)
    assert len(read(tmp_path, "test")) == 1
    with pytest.raises(DatasetError, match="no split 'dev'"):
        read(tmp_path, "dev")


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    file = write(tmp_path, "jsonl", ROWS)
    before = open_source(str(file), allow_local=True).sha
    assert before == open_source(str(file), allow_local=True).sha
    file.write_text(file.read_text().replace("question 3", "question 4"))
    assert before != open_source(str(file), allow_local=True).sha


@pytest.mark.parametrize(
    "text",
    ["/etc/passwd", "../secret.jsonl", "rows.jsonl/../..", "a/b/c", "x" * 300, "a\nb", "é/é"],
)
def test_text_from_a_visitor_is_never_a_path(text: str) -> None:
    with pytest.raises(DatasetError, match="not the id"):
        open_source(text)


def test_a_missing_file_and_an_unknown_kind_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(DatasetError, match="no file or folder"):
        read(tmp_path / "b.jsonl")
    with pytest.raises(DatasetError, match=r"a\.docx is not a file that can be read"):
        read(tmp_path / "a.docx")


def test_a_dataset_on_the_hub_is_streamed_at_its_commit(hub: FakeHub) -> None:
    content = "".join(json.dumps(row) + "\n" for row in ROWS)
    hub.add_dataset("alice/rows", {"train.jsonl": content.encode()})
    source = open_source("alice/rows")
    assert [row.values for row in source.rows()] == ROWS
    assert source.columns == ("prompt", "completion")
    assert len(source.sha) == 40
    assert next(iter(source.rows())).location == "alice/rows/train.jsonl, line 1"


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "csv"])
def test_a_large_dataset_on_the_hub_is_inspected_with_a_few_requests(
    hub: FakeHub, tmp_path: Path, kind: str
) -> None:
    rng = random.Random(0)
    rows = [{"text": f"{n} {rng.randbytes(500).hex()}"} for n in range(5000)]
    content = write(tmp_path, kind, rows).read_bytes()
    names = [f"data/train-{shard:05}.{kind}" for shard in range(40)]
    hub.add_dataset("alice/large", dict.fromkeys(names, content))
    source = open_source("alice/large")
    hub.requests.clear()
    first, is_all = source.sample(2000)
    assert [row.values for row in first] == rows[:2000]
    assert not is_all
    opened = {r.path for r in hub.requests if "/resolve/" in r.path and "train-" in r.path}
    assert len(opened) == 1  # of 40 files
    assert len(hub.requests) < 30, [r.path for r in hub.requests]


def test_a_bomb_on_the_hub_is_refused_like_a_local_one(hub: FakeHub, tmp_path: Path) -> None:
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), ["a" * 2**20])
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    hub.add_dataset("alice/bomb", {"train.parquet": (tmp_path / "a.parquet").read_bytes()})
    with pytest.raises(DatasetError, match=r"alice/bomb/train\.parquet unpacks to more than 200"):
        list(open_source("alice/bomb").rows())


def test_an_index_that_points_outside_an_arrow_file_is_not_followed(tmp_path: Path) -> None:
    index = pa.array([0, 1, 0x0BADF00D], pa.int32())
    rows = pa.DictionaryArray.from_arrays(index, ["a", "b"], safe=False)
    table = pa.table({"text": rows})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DatasetError, match=r"a\.arrow cannot be read"):
        read(tmp_path / "a.arrow")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_row_of_a_table_that_is_not_utf8_is_named(tmp_path: Path, kind: str) -> None:
    raw = pa.array([b"good", b"\xff\xfe"])
    table = pa.table({"text": pa.StringArray.from_buffers(2, *raw.buffers()[1:])})
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, file)
    else:
        with pa.ipc.new_stream(str(file), table.schema) as writer:
            writer.write_table(table)
    good, bad = read(file)
    assert good.values == {"text": "good"}
    assert bad.problem is not None
    assert bad.problem.message == f"a.{kind}, row 2 is not valid UTF-8."


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "txt"])
@pytest.mark.parametrize("packing", ["gz", "zst"])
def test_compressed_text_gives_the_rows_of_the_plain_file(
    tmp_path: Path, kind: str, packing: str
) -> None:
    plain = tmp_path / f"rows.{kind}"
    if kind == "txt":
        plain.write_text("one\ntwo\n\nthree\n")
    else:
        write(tmp_path, kind, ROWS)
    content = plain.read_bytes()
    packed = (
        gzip.compress(content) if packing == "gz" else pa.compress(content, "zstd", asbytes=True)
    )
    file = tmp_path / f"rows.{kind}.{packing}"
    file.write_bytes(packed)
    assert values(file) == values(plain)
    source = open_source(str(file), allow_local=True)
    assert source.num_rows == len(values(plain))
    assert source.num_bytes == len(content)


def test_every_way_of_arrow_to_write_text_is_read(tmp_path: Path) -> None:
    words = [f"word {n % 130}" if n % 7 else None for n in range(900)]
    small = pa.array(words).dictionary_encode()
    columns: dict[str, pa.Array] = {
        "plain": pa.array(words),
        "large": pa.array(words, pa.large_string()),
        "view": pa.array(words, pa.string_view()),
        "dictionary": small,
        "runs": pa.RunEndEncodedArray.from_arrays(pa.array([3, 900], pa.int32()), ["a", "b"]),
        "lists": pa.array([[word] for word in words]),
        "views of lists": pa.array([[word] for word in words], pa.list_view(pa.string())),
        "structs": pa.array([{"role": word} for word in words]),
        "maps": pa.array([[("k", word)] for word in words], pa.map_(pa.string(), pa.string())),
    }
    table = pa.table(columns)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert values(tmp_path / "a.arrow") == table.to_pylist()


def test_a_half_pair_that_is_escaped_is_named_like_one_that_is_not(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", '{"t": "\\ud800"}\n{"t": "\\ud83d\\ude00"}'),):
        (tmp_path / name).write_text(text)
        bad, good = read(tmp_path / name)
        assert bad.problem is not None
        assert bad.problem.code == "not_utf8"
        assert good.values == {"t": "\U0001f600"}


def test_an_unknown_dataset_on_the_hub_is_one_sentence(hub: FakeHub) -> None:
    with pytest.raises(QloraSpaceError, match="alice/nothing"):
        list(open_source("alice/nothing").rows())


def test_a_number_that_lies_across_two_pieces_of_the_file_is_one_number() -> None:
    class Slow(io.StringIO):
        def read(self, size: int | None = -1) -> str:
            return super().read(min(3, size or 0))

    assert list(iterate_json_values(Slow("[12345678, 9, 1234]"), "a")) == [12345678, 9, 1234]


def test_ten_million_rows_on_the_hub_are_inspected_in_seconds_from_a_few_requests(
    hub: FakeHub, tmp_path: Path, base: ModelFacts, base_folder: Path
) -> None:
    rows = 1_000_000
    numbers = pa.array(range(rows)).cast(pa.string())
    prompts = pc.binary_join_element_wise("What comes after", numbers, "?", " ")
    answers = pc.binary_join_element_wise("After it comes the next of", numbers, " ")
    table = pa.table({"prompt": prompts, "completion": answers})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100_000, compression="zstd")
    shard = (tmp_path / "a.parquet").read_bytes()
    names = [f"data/train-{n:05}-of-00010.parquet" for n in range(10)]
    hub.add_dataset("alice/vast", dict.fromkeys(names, shard))
    started = time.monotonic()
    found = inspect_dataset(TrainingRequest(dataset="alice/vast"), base, base_folder, None)
    assert time.monotonic() - started < 20
    assert found.rows_looked_at == 2000
    assert (found.num_rows, found.dataset.is_exact) == (10 * rows, True)
    assert len(hub.requests) < 100
