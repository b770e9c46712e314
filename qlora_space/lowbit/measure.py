"""measure_base(): what few bits cost on a base, without a dataset: calibrated and measured on general text."""

from pathlib import Path

from qlora_space.data import load_tokenizer
from qlora_space.errors import RequestError
from qlora_space.facts import DatasetFacts, Hardware, ModelFacts, TokenLengths
from qlora_space.hub import fetch_base
from qlora_space.lowbit.base import low_bit_base
from qlora_space.model import explains_out_of_memory
from qlora_space.plan import resolve
from qlora_space.request import TrainingRequest
from qlora_space.runs import Quality

_NO_ROWS = DatasetFacts(
    id="general text", sha="", format="text", num_rows=1, is_exact=True,
    lengths=TokenLengths(p50=512, p95=512, max=512, mean=512, truncated_fraction=0, trained_fraction=1),
)  # fmt: skip


def measure_base(
    request: TrainingRequest,
    base: ModelFacts,
    hardware: Hardware,
    quantized_folder: Path,
    token: str | None,
) -> Quality:
    """Kept on disk like that of a run. Raises RequestError, ModelError, HubError, DiskFull, OutOfMemory."""
    if request.bits > 4:
        raise RequestError(
            f"bits is {request.bits}: 8 bits and more lose next to nothing.", "Ask for 4, 3 or 2."
        )
    plan = resolve(request, base, _NO_ROWS, hardware)
    folder = fetch_base(base, token)
    with explains_out_of_memory("Quantizing"):
        made = low_bit_base(
            plan, folder, None, load_tokenizer(folder), quantized_folder, lambda *_: None
        )
    return made.quality
