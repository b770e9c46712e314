"""What low bits were measured to cost on a base: one JSON file beside each start that was made."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_space.events import Rung
from qlora_space.options import Init

QUALITY_FILE = "quality.json"


class Quality(BaseModel):
    """Of one recipe on one base; the 16-bit base is the first rung, what training starts from the last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_id: str
    base_sha: str
    bits: int
    init: Init
    heal: bool
    group_size: int
    mean_bits: float = 0.0
    gptq: bool = False
    r: int
    bits_per_weight: float
    text: str = Field(description="What it was measured on.")
    rungs: tuple[Rung, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One flat object a rung, as the command line prints them."""
        return [
            {
                "bits": 16 if rung.name == "16 bit" else self.bits,
                "init": self.init if rung.name in ("start", "healed") else "zero",
                "healed": rung.name == "healed",
                "ppl": rung.ppl,
                "kl": rung.kl,
                "top1": rung.top1,
                "bits_per_weight": 16.0 if rung.name == "16 bit" else self.bits_per_weight,
            }
            for rung in self.rungs
        ]


def known_quality(quantized_folder: Path, base_sha: str) -> list[Quality]:
    """All that was measured on this base, most bits first; unreadable files are passed over."""
    found = []
    for file in quantized_folder.glob(f"*/*/{QUALITY_FILE}"):
        try:
            quality = Quality.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            continue
        if quality.base_sha == base_sha:
            found.append(quality)
    return sorted(found, key=lambda q: (-q.bits, q.rungs[-1].ppl))
