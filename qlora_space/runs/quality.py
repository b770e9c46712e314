"""How far a low-bit base is from its 16-bit original: one quality.json beside each adapter init."""

from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from qlora_space.core.events import QualityPoint
from qlora_space.core.options import Init

QUALITY_FILE = "quality.json"


class Quality(BaseModel):
    """One recipe measured on one base. The first point is the 16-bit base, the last is where training starts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_id: str
    base_sha: str
    bits: int
    init: Init
    heal: bool
    group_size: int
    mean_bits: float = 0.0
    calibrated: bool = Field(
        default=False,
        validation_alias=AliasChoices("calibrated", "gptq"),  # older quality.json files say "gptq"
    )
    r: int
    bits_per_weight: float
    text: str = Field(description="What it was measured on.")
    points: tuple[QualityPoint, ...] = Field(
        validation_alias=AliasChoices("points", "rungs")  # older quality.json files say "rungs"
    )

    def rows(self) -> list[dict[str, Any]]:
        """One flat object for each point, as the command line prints them."""
        return [
            {
                "bits": 16 if point.name == "16 bit" else self.bits,
                "init": self.init if point.name in ("start", "healed") else "zero",
                "healed": point.name == "healed",
                "ppl": point.ppl,
                "kl": point.kl,
                "top1": point.top1,
                "bits_per_weight": 16.0 if point.name == "16 bit" else self.bits_per_weight,
            }
            for point in self.points
        ]


def known_quality(quantized_folder: Path, base_sha: str) -> list[Quality]:
    """Every recipe measured on this base, most bits first; unreadable files are skipped."""
    found = []
    for file in quantized_folder.glob(f"*/*/{QUALITY_FILE}"):
        try:
            quality = Quality.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            continue
        if quality.base_sha == base_sha:
            found.append(quality)
    return sorted(found, key=lambda q: (-q.bits, q.points[-1].ppl))
