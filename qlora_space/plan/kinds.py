"""What is special about a base, and what a plan does about it: what is left out, what cannot be packed."""

from qlora_space.core.errors import RequestError
from qlora_space.core.facts import ModelFacts
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import count
from qlora_space.plan.plan import Choices

# Types whose attention in transformers takes no bounds of documents.
_UNBOUNDED_TYPES = {"bloom", "falcon", "gpt_oss", "opt", "qwen2_5_vl_text", "qwen2_vl_text"}


def as_base_allows(request: TrainingRequest, base: ModelFacts, choices: Choices) -> TrainingRequest:
    """Tells what is not loaded, and takes back packing where documents would not be independent of each other."""
    if base.read_as:
        why = f"its weights are stored as {base.read_as}, and dequantized as they are read"
        choices.pick("stored_weights", None, f"{request.bits} bits", why)
    if base.expert_bits:
        why = "the checkpoint's own 4-bit values of experts are kept, not rounded again"
        choices.pick("stored_weights", None, "MXFP4", why)
    if base.left_out_parameters:
        what = "towers for images and sound" if base.is_wrapper else "layers for later tokens"
        why = f"{what}, {count(base.left_out_parameters)} weights, are not loaded"
        choices.pick("trained_part", None, "text", why)
    why = _why_not_packed(base)
    if request.packing and why:
        return request.model_copy(update={"packing": choices.pick("packing", None, False, why)})
    return request


def special(base: ModelFacts) -> tuple[str, ...]:
    """What one should know of a base before it is chosen, in a few words each; () for most."""
    words = []
    if base.num_experts:
        active = count(base.weights_per_token)
        words.append(
            f"mixture of experts: {count(base.parameters)} weights, {active} active for a token"
        )
    if base.is_wrapper:
        words.append("multimodal: its text part is trained")
    if base.state_carried:
        words.append(f"hybrid with {base.state_carried}")
    if _why_not_packed(base):
        words.append("one document a row")
    if base.read_as:
        words.append(f"{base.read_as}: read by way of 16 bits")
    if base.expert_bits:
        words.append("MXFP4: experts keep their 4-bit values")
    if base.quantization:
        words.append(f"{base.quantization}, {base.quantized_bits} bits: trained on as it is")
    return tuple(words)


def check_blocks(base: ModelFacts, bits: float) -> None:
    """Raises RequestError for a base that is not quantized here block by block."""
    if base.is_blockwise:
        return
    raise RequestError(
        f"{base.id} is a {base.architecture}, which cannot be packed block by block to {bits:g} bits.",
        "Take 4 bits without init, heal and calibrated.",
    )


def _why_not_packed(base: ModelFacts) -> str:
    """'' where documents of one row are independent of each other (tests/model/test_families.py)."""
    if base.state_carried:
        return (
            f"{base.state_carried} layers carry state, which would leak from one document into the next; without "
            "flash-linear-attention and causal-conv1d they also take torch's slower way"
        )
    if base.model_type in _UNBOUNDED_TYPES:
        return f"{base.architecture} in transformers lets a document attend to the one before it"
    return ""
