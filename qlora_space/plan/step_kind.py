"""Whether a run takes the fast step (qlora_space/fast) or transformers' plain one, and why. Arithmetic on facts."""

from qlora_space.core.facts import Hardware, ModelFacts
from qlora_space.fast.limits import LARGEST_RANK, MODEL_TYPES


def why_base_is_plain(base: ModelFacts) -> str:
    """Empty if the fast step knows such a base."""
    if base.model_type not in MODEL_TYPES:
        return f"{base.architecture} is not among those it knows"
    return ""


def why_plain(
    base: ModelFacts, hardware: Hardware, *, bits: int, r: int, lora_dropout: float
) -> str:
    """Empty if the fast step will be taken."""
    if hardware.device != "cuda":
        return "the fast one is for GPUs"
    reasons = {
        "this GPU has no bf16": not hardware.has_bf16,
        "the fast one is for 4 bits and fewer": bits > 4,
        "the fast one has no dropout": lora_dropout > 0,
        f"the fast one takes ranks up to {LARGEST_RANK}": r > LARGEST_RANK,
    }
    return next((why for why, is_so in reasons.items() if is_so), "") or why_base_is_plain(base)
