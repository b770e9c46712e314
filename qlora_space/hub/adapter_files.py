"""The files that are published: an allow-list of names, their hashes, and only finite numbers in the adapter."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from qlora_space.core.errors import HubError, ModelError
from qlora_space.hub.card.loss_chart import CHART_FILE
from qlora_space.hub.download import (
    ADAPTER_FILES,
    PACKED_FOLDER,
    RECORD_FILE,
    TOKENIZER_FILES,
    packed_files,
)
from qlora_space.hub.files import PublishedFile, hashed
from qlora_space.hub.headers import Tensor, read_tensors

CARD_FILE = "README.md"
_TRAIN_AGAIN = "Resume the run if it can be, or train again."
# The bits of the exponent: all ones means infinite or not a number. numpy has no bfloat16, so bits are compared.
_EXPONENT = {
    "F64": (np.dtype("<u8"), 0x7FF0000000000000),
    "F32": (np.dtype("<u4"), 0x7F800000),
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
}


def files_to_publish(
    adapter_folder: Path,
    card: str,
    record: str,
    run_id: str,
    packed_base: Path | None = None,
    chart: bytes = b"",
) -> tuple[PublishedFile, ...]:
    """Adapter, tokenizer, card, record and chart; the folder of a packed base is published as `base/`.

    Raises HubError if the adapter is missing, damaged or not finite.
    """
    for name in ADAPTER_FILES:
        if not (adapter_folder / name).is_file():
            raise HubError(f"The run has no {name} to publish.", "Train it to the end first.")
    refuse_not_finite(adapter_folder / ADAPTER_FILES[0])
    names = [n for n in (*ADAPTER_FILES, *TOKENIZER_FILES) if (adapter_folder / n).is_file()]
    sources: dict[str, Path | bytes] = {name: adapter_folder / name for name in names}
    if packed_base:
        sources |= {f"{PACKED_FOLDER}/{n}": packed_base / n for n in packed_files(packed_base)}
    sources[CARD_FILE] = card.encode()
    sources[RECORD_FILE] = json.dumps({**json.loads(record), "run_id": run_id}, indent=1).encode()
    if chart:
        sources[CHART_FILE] = chart
    return tuple(hashed(name, source) for name, source in sources.items())


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
    """Each tensor with its values as unsigned integers, memory-mapped. Raises HubError for a type no adapter has."""
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
