"""The files of an adapter that are published: an allow-list, hashed, and finite."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qlora_space.core.errors import HubError, ModelError
from qlora_space.hub.download import (
    ADAPTER_FILES,
    PACKED_FOLDER,
    RECORD_FILE,
    TOKENIZER_FILES,
    packed_files,
)
from qlora_space.hub.headers import Tensor, read_tensors

CARD_FILE = "README.md"
_TRAIN_AGAIN = "Resume the run if it can be, or train again."
_PIECE_BYTES = 2**22
# Bits of the exponent: all ones means infinite or not a number. numpy has no bfloat16, so safetensors cannot load it here.
_EXPONENT = {
    "F64": (np.dtype("<u8"), 0x7FF0000000000000),
    "F32": (np.dtype("<u4"), 0x7F800000),
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
}


@dataclass(frozen=True)
class PublishedFile:
    """One file and the two hashes that the Hub may know it by."""

    name: str
    source: Path | bytes
    num_bytes: int
    sha256: str
    blob_id: str


def files_to_publish(
    adapter_folder: Path, card: str, record: str, run_id: str, packed_base: Path | None = None
) -> tuple[PublishedFile, ...]:
    """What goes to the Hub; the folder of a packed base as its base/. Raises HubError if the adapter is missing,
    damaged or not finite."""
    for name in ADAPTER_FILES:
        if not (adapter_folder / name).is_file():
            raise HubError(f"The run has no {name} to publish.", "Train it to the end first.")
    refuse_not_finite(adapter_folder / ADAPTER_FILES[0])
    names = [n for n in (*ADAPTER_FILES, *TOKENIZER_FILES) if (adapter_folder / n).is_file()]
    along = packed_files(packed_base) if packed_base else []
    stamped = json.dumps({**json.loads(record), "run_id": run_id}, indent=1)
    return (
        *(_hashed(name, adapter_folder / name) for name in names),
        *(_hashed(f"{PACKED_FOLDER}/{name}", packed_base / name) for name in along if packed_base),
        _hashed(CARD_FILE, card.encode()),
        _hashed(RECORD_FILE, stamped.encode()),
    )


def _hashed(name: str, source: Path | bytes) -> PublishedFile:
    """Read in pieces: a packed base may be larger than the memory that is free."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            sha256.update(piece)
            blob.update(piece)
    return PublishedFile(name, source, size, sha256.hexdigest(), blob.hexdigest())


def refuse_not_finite(file: Path) -> None:
    """Raises HubError if the file is damaged, or a value in it is infinite or not a number."""
    try:
        tensors = read_tensors(file)
    except ModelError as error:
        raise HubError(error.what, _TRAIN_AGAIN) from None
    if not tensors:
        raise HubError(f"{file.name} holds no weights.", _TRAIN_AGAIN)
    for tensor, values in _bit_patterns(file, tensors):
        _, exponent = _EXPONENT[tensor.dtype]
        bad = np.count_nonzero((values & exponent) == exponent)
        if bad:
            raise HubError(
                f"The adapter is not usable: {bad:,} of {tensor.size:,} values of {tensor.name} "
                "are not finite numbers.",
                "It is not published. Train again with a lower learning rate.",
            )


def _bit_patterns(file: Path, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Every tensor with its values as unsigned integers, mapped and not loaded. Raises HubError for other types."""
    for tensor in tensors:
        if tensor.dtype not in _EXPONENT:
            raise HubError(
                f"{tensor.name} has the type {tensor.dtype}, which an adapter never has.",
                _TRAIN_AGAIN,
            )
    sizes = [tensor.size * _EXPONENT[tensor.dtype][0].itemsize for tensor in tensors]
    data = np.memmap(file, dtype=np.uint8, mode="r")
    end = len(data) - sum(sizes)
    for tensor, size in zip(tensors, sizes, strict=True):
        start, end = end, end + size
        yield tensor, data[start:end].view(_EXPONENT[tensor.dtype][0])
