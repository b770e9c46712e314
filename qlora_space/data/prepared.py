"""The folder of prepared data: train.arrow, eval.arrow, eval_examples.jsonl, manifest.json.

Arrow IPC streams with input_ids, labels (-100: no loss) and seq_lengths (of the documents in a packed
row); `datasets.Dataset.from_file` memory-maps them. The folder is complete or it is not there.

Prepared data is shared in a cache: runs whose inputs hash the same have hard links to the same files. An
entry appears complete and is never written to again. Its hashes are checked before each use, so that a
damaged one is made anew, and two processes that make the same one do no harm.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_space.core.atomic import whole_folder
from qlora_space.core.errors import DatasetError, DiskFull
from qlora_space.core.options import Format
from qlora_space.data.messages import Message

IGNORED_LABEL = -100
_TRAIN, _EVAL, _EXAMPLES, _MANIFEST = (
    "train.arrow",
    "eval.arrow",
    "eval_examples.jsonl",
    "manifest.json",
)
FILES = (_TRAIN, _EVAL, _EXAMPLES, _MANIFEST)
_INTS = pa.list_(pa.int32())
SCHEMA = pa.schema([("input_ids", _INTS), ("labels", _INTS), ("seq_lengths", _INTS)])
_ROWS_PER_BATCH = 256
_UNUSED_ENTRIES_KEPT = 3  # of deleted runs: another run of the same data is likely soon


@dataclass(frozen=True)
class Document:
    """Token ids and labels of one document, int32."""

    input_ids: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class EvalExample:
    """A held-out row: `messages` to render as a prompt, and the answer that the data has."""

    messages: tuple[Message, ...]
    expected: str


class Manifest(BaseModel):
    """What is in the folder and what it was made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(description="Hash of everything that the content depends on.")
    files: dict[str, str] = Field(default={}, description="sha256 of each file.")
    dataset_sha: str
    tokenizer_sha256: str
    format: Format
    columns: dict[str, str]
    max_length: int
    rows_read: int
    rows_used: int = Field(description="Rows trained on.")
    rows_dropped: dict[str, int] = Field(description="Problem code -> rows.")
    rows_truncated: int = Field(description="Rows trained on whose answer lost its end.")
    eval_rows: int = Field(description="Held-out documents: pieces, where a text has several.")
    eval_pieces: tuple[int, ...] = Field(
        default=(),
        description="How many in succession are of one text; empty: none has several.",
    )
    eval_texts_are_trained: bool = Field(
        default=False, description="What is held out is the end of texts that are trained on."
    )
    tokens: int = Field(description="Tokens of the training rows.")
    trained_tokens: int = Field(description="Those of them that get a loss.")
    packed_rows: int
    waste_fraction: float = Field(description="Share of packed positions that hold no token.")
    stop_token_ids: tuple[int, ...] = Field(description="Tokens that end a trained answer.")


@dataclass(frozen=True)
class Prepared:
    """A complete folder of prepared data."""

    folder: Path
    manifest: Manifest

    @property
    def train_file(self) -> Path:
        return self.folder / _TRAIN

    @property
    def eval_file(self) -> Path:
        return self.folder / _EVAL

    @property
    def eval_examples_file(self) -> Path:
        return self.folder / _EXAMPLES

    def eval_examples(self) -> list[EvalExample]:
        """Held-out rows as prompts with their answers; at most 200."""
        with self.eval_examples_file.open(encoding="utf-8") as lines:
            return [_example_from_line(line) for line in lines]


def load_prepared(folder: Path) -> Prepared:
    """Raises DatasetError if the folder is missing, incomplete or not ours."""
    try:
        manifest = Manifest.model_validate_json((folder / _MANIFEST).read_bytes())
        is_intact = all(_sha256(folder / name) == sha for name, sha in manifest.files.items())
    except (OSError, ValidationError) as error:
        raise DatasetError("The prepared data is not there.", "Prepare it again.") from error
    if not is_intact or set(manifest.files) != {_TRAIN, _EVAL, _EXAMPLES}:
        raise DatasetError("The prepared data was changed or is damaged.", "Prepare it again.")
    return Prepared(folder, manifest)


def write_prepared(
    folder: Path,
    manifest: Manifest,
    train_rows: Iterable[list[Document]],
    eval_rows: Iterable[list[Document]],
    examples: Iterable[EvalExample],
) -> Prepared:
    """Write everything beside `folder`, then rename it. Each row is a list of its documents.

    Raises DiskFull.
    """
    with whole_folder(folder, "The prepared data") as part:
        _write_rows(part / _TRAIN, train_rows)
        _write_rows(part / _EVAL, eval_rows)
        (part / _EXAMPLES).write_text("".join(map(_line_of, examples)), encoding="utf-8")
        files = {name: _sha256(part / name) for name in (_TRAIN, _EVAL, _EXAMPLES)}
        manifest = manifest.model_copy(update={"files": files})
        (part / _MANIFEST).write_text(manifest.model_dump_json(indent=1))
    return Prepared(folder, manifest)


def link_from_cache(cache: Path, key: str, folder: Path) -> Prepared | None:
    """Link the entry with this key into `folder`; None if there is no intact one."""
    try:
        with whole_folder(folder, "The prepared data") as part:
            for name in FILES:
                _link(_entry(cache, key) / name, part / name)
            manifest = load_prepared(part).manifest
            if manifest.key != key:
                raise DatasetError("The entry is of other data.")
    except (DatasetError, DiskFull):
        return None
    return Prepared(folder, manifest)


def add_to_cache(cache: Path, prepared: Prepared) -> None:
    """Make prepared data an entry. Never fails: it only saves later runs some time."""
    entry = _entry(cache, prepared.manifest.key)
    with suppress(DatasetError):
        load_prepared(entry)
        return
    with suppress(DiskFull), whole_folder(entry, "The prepared data") as part:
        for name in FILES:
            _link(prepared.folder / name, part / name)
    _delete_unused_entries(cache)


def _write_rows(file: Path, rows: Iterable[list[Document]]) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        batch: list[list[Document]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _ROWS_PER_BATCH:
                writer.write_batch(_record_batch(batch))
                batch = []
        if batch:
            writer.write_batch(_record_batch(batch))


def _record_batch(rows: list[list[Document]]) -> pa.RecordBatch:
    ids = [np.concatenate([document.input_ids for document in row]) for row in rows]
    labels = [np.concatenate([document.labels for document in row]) for row in rows]
    lengths = [np.array([len(document.input_ids) for document in row], np.int32) for row in rows]
    columns = [_list_array(values) for values in (ids, labels, lengths)]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _list_array(values: list[np.ndarray]) -> pa.Array:
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    flat = np.concatenate(values).astype(np.int32, copy=False)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _line_of(example: EvalExample) -> str:
    messages = [message.to_json() for message in example.messages]
    line = {"messages": messages, "expected": example.expected}
    return json.dumps(line, ensure_ascii=False) + "\n"


def _example_from_line(line: str) -> EvalExample:
    value = json.loads(line)
    return EvalExample(tuple(map(Message.from_json, value["messages"])), value["expected"])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _entry(cache: Path, key: str) -> Path:
    """Another version of this code may prepare the same inputs differently."""
    return cache / hashlib.sha256(f"{key} {_code_hash()}".encode()).hexdigest()[:32]


@lru_cache
def _code_hash() -> str:
    whole = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        whole.update(file.read_bytes())
    return whole.hexdigest()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _delete_unused_entries(cache: Path) -> None:
    """Keep every entry that a run has links to, and the newest few of the others."""
    with suppress(OSError):
        found = sorted(cache.glob("[0-9a-f]*"), key=lambda entry: -entry.stat().st_mtime)
        unused = [entry for entry in found if (entry / FILES[0]).stat().st_nlink == 1]
        for entry in unused[_UNUSED_ENTRIES_KEPT:]:
            shutil.rmtree(entry, ignore_errors=True)
