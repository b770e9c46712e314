"""What is special about a mixture of experts: which bits it can have, the rank on an expert, and what experts need.

Axes: T tokens at once, H hidden size, I width of an expert, k experts per token, R rank.
"""

from qlora_space.core.errors import RequestError
from qlora_space.core.facts import ModelFacts
from qlora_space.core.request import TrainingRequest
from qlora_space.core.targets import ALL_LINEAR, MLP

_WEIGHT_BYTES_AT_ONCE = _ROW_BYTES_AT_ONCE = 2**29  # of experts at work (experts/products.py)
_SMALLEST_RANK = 16  # to which the copies of adapters are padded (experts/products.py)


def check_mixture(request: TrainingRequest, base: ModelFacts) -> None:
    """Raises RequestError for bits in which experts cannot be, and for an option that needs experts."""
    if not base.num_experts:
        if request.expert_r:
            raise RequestError(
                f"{base.id} is no mixture of experts, so expert_r has no meaning.", "Leave it out."
            )
        return
    if base.expert_bits and request.bits != 4:
        raise RequestError(
            f"The experts of {base.id} are in MXFP4, which is kept: it has 4 bits, not {request.bits}.",
            "Leave bits at 4.",
        )
    refused = {
        "8 bits": request.bits == 8,
        "heal": request.heal,
        "calibrated quantization": bool(request.calibrated),
        "mixed bits": bool(request.mean_bits or request.base_gib),
    }
    for what, is_asked in refused.items():
        if is_asked:
            raise RequestError(
                f"{base.id} is a mixture of experts, for which there is no such thing as {what}.",
                "Use 4, 3 or 2 bits without heal, calibrated, mean_bits and base_gib.",
            )
    if request.lora_dropout and expert_rank(request, base, 1):
        raise RequestError(
            f"lora_dropout is {request.lora_dropout:g}, which adapters on experts do not have.",
            "Set it to 0, or expert_r to 0.",
        )


def expert_rank(request: TrainingRequest, base: ModelFacts, r: int) -> int:
    """Rank of the adapter on every expert, 0 for none.

    All experts of a token together have the rank of one linear: as much capacity for a token as in a dense base, and
    a rank that grows with k would cost k times the memory ("LoRA Without Regret", Thinking Machines, 2025). In 16 bits
    peft builds all experts of a layer anew in every pass, so only attention is adapted unless somebody asks.
    """
    if request.expert_r is not None:
        return request.expert_r if base.num_experts else 0
    if not base.num_experts or request.bits == 16 or _leaves_experts_out(request):
        return 0
    return max(1, r // max(1, base.experts_per_token))


def _leaves_experts_out(request: TrainingRequest) -> str:
    """Why, '' where they are adapted."""
    if request.lora_dropout:
        return "adapters on experts have no dropout"
    if request.use_dora:
        return "DoRA does not work on experts"
    if request.target_modules not in (ALL_LINEAR, MLP):
        return f"target_modules is {request.target_modules}"
    return ""


def why_expert_rank(request: TrainingRequest, base: ModelFacts, expert_r: int) -> str:
    """The reason of the default."""
    if why := _leaves_experts_out(request):
        return why
    if not expert_r:
        return "16-bit experts would be built anew in every pass; attention alone is adapted"
    k = max(1, base.experts_per_token)
    return f"{k} experts of a token together have the rank of one linear"


def expert_activation_bytes(model: ModelFacts, tokens: int, expert_r: int) -> int:
    """Bytes of the experts of one layer in backward, beside what is kept: a part of the matrices in 16 bits, what is
    there for the rows of a tile of tokens, and copies of the adapters. Counted in experts/products.py.
    """
    if not model.num_experts:
        return 0
    hidden, width = model.hidden_size, model.expert_intermediate_size
    down = 2 * model.num_experts * hidden * width
    up = 2 * down / max(1, -(-2 * down // _WEIGHT_BYTES_AT_ONCE))
    fitting = _ROW_BYTES_AT_ONCE // (2 * model.experts_per_token * (hidden + 4 * width))
    tile = 1 << max(0, fitting.bit_length() - 1)
    rows = 2 * min(tokens, tile) * model.experts_per_token
    # Gradient of the activation; first product; gradients of `down`; gradient of the input.
    stages = (
        rows * (hidden + width) + down,
        rows * (hidden + 5 * width) + up,
        rows * (2 * hidden + 3 * width),
        rows * (2 * hidden + 2 * width) + up,
    )
    layers = max(1, model.expert_parameters // max(1, 3 * hidden * width * model.num_experts))
    copies = 2 * max(expert_r, _SMALLEST_RANK) * model.expert_sides // layers if expert_r else 0
    return round(max(stages)) + 4 * tokens * hidden + 2 * copies
