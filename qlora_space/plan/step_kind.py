"""Whether a run takes the fast step (qlora_space/fast) or transformers' plain one, and why. Arithmetic on facts."""

from qlora_space.core.facts import Hardware, ModelFacts
from qlora_space.core.request import TrainingRequest
from qlora_space.fast.limits import LARGEST_RANK, MODEL_TYPES
from qlora_space.plan.targets import adapts_all


def why_base_is_plain(base: ModelFacts) -> str:
    """Empty if the fast step knows such a base."""
    if base.model_type not in MODEL_TYPES:
        return f"{base.architecture} is not among those it knows"
    return ""


def why_plain(request: TrainingRequest, base: ModelFacts, hardware: Hardware, r: int) -> str:
    """Empty if the fast step will be taken."""
    if hardware.device != "cuda":
        return "the fast one is for GPUs"
    reasons = {
        "this GPU has no bf16": not hardware.has_bf16,
        "there is no compiler for its kernels here": not hardware.compiles_kernels,
        "the fast one is for 4 bits and fewer": request.bits > 4,
    }
    found = next((why for why, is_so in reasons.items() if is_so), "") or why_base_is_plain(base)
    return found or why_adapter_is_plain(request, base, r)


def why_adapter_is_plain(request: TrainingRequest, base: ModelFacts, r: int) -> str:
    """What of the adapter the fast step cannot do, on a base that it knows."""
    reasons = {
        "the fast one has no dropout": request.lora_dropout > 0,
        f"the fast one takes ranks up to {LARGEST_RANK}": r > LARGEST_RANK,
        "the fast one has no DoRA": request.use_dora,
        "the fast one needs an adapter on every linear layer": not adapts_all(
            base, request.target_modules
        ),
    }
    return next((why for why, is_so in reasons.items() if is_so), "")
