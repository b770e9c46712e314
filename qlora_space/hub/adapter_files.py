"""The files of an adapter that are published: an allow-list, hashed, and finite."""

import hashlib
import io
import json
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
from qlora_space.hub.headers import Tensor, read_header

CARD_FILE = "README.md"
_PIECE_BYTES = 2**22
# Bits of the exponent: all ones means infinite or not a number. numpy itself has no bfloat16.
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
    """Raises HubError if a value of the adapter is infinite or not a number."""
    try:
        header = read_header(file)
    except ModelError as error:
        raise HubError(error.what, "Train it again.") from None
    if not header.tensors:
        raise HubError(f"{file.name} holds no weights.", "Train it again.")
    data = np.memmap(file, dtype=np.uint8, mode="r", offset=header.num_bytes)
    for tensor in header.tensors:
        bad = _num_not_finite(data, tensor)
        if bad:
            raise HubError(
                f"The adapter is not usable: {bad:,} of {tensor.size:,} values of {tensor.name} "
                "are not finite numbers.",
                "It is not published. Train again with a lower learning rate.",
            )


def _num_not_finite(data: np.ndarray, tensor: Tensor) -> int:
    if tensor.dtype not in _EXPONENT:
        raise HubError(
            f"{tensor.name} has the type {tensor.dtype}, which an adapter never has.",
            "Train it again.",
        )
    dtype, exponent = _EXPONENT[tensor.dtype]
    content = data[tensor.start_byte : tensor.end_byte]
    if len(content) != tensor.size * dtype.itemsize:
        raise HubError("adapter_model.safetensors ends too early.", "Train it again.")
    return int(np.count_nonzero((content.view(dtype) & exponent) == exponent))
