"""Whether a run takes the fast step (qlora_space/fast) or transformers' plain one, and why. Arithmetic on facts."""

from qlora_space.core.facts import Hardware, ModelFacts

# What fast/recognise.py understands; each is compared with the plain path in tests/fast/test_model.py.
_FAST_MODELS = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"}
_LARGEST_FAST_RANK = 64


def why_base_is_plain(base: ModelFacts) -> str:
    """Empty if the fast step knows such a base."""
    if base.model_type not in _FAST_MODELS:
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
        f"the fast one takes ranks up to {_LARGEST_FAST_RANK}": r > _LARGEST_FAST_RANK,
    }
    return next((why for why, is_so in reasons.items() if is_so), "") or why_base_is_plain(base)
