"""What is special about a mixture of experts: which bits it can have, the rank on an expert, and what experts need.

Axes: T tokens at once, H hidden size, I width of an expert, k experts per token, R rank.
"""

from qlora_space.core.errors import RequestError
from qlora_space.core.facts import ModelFacts
from qlora_space.core.request import TrainingRequest

# qlora_space/experts/routing.py: weights of the experts that are unpacked at a time, and rows that they have at most.
_WEIGHTS_AT_ONCE, _ROWS_AT_ONCE = 2**27, 2**15
_SMALLEST_RANK = 16  # to which the copies of adapters are padded (experts/products.py)


def check_mixture(request: TrainingRequest, base: ModelFacts, *, is_low_bit: bool) -> None:
    """Raises RequestError for bits in which experts cannot be, and for an option that needs experts."""
    if not base.num_experts:
        if request.expert_r:
            raise RequestError(
                f"{base.id} is no mixture of experts, so expert_r has no meaning.", "Leave it out."
            )
        return
    if request.bits == 8 or is_low_bit:
        what = "8 bits" if request.bits == 8 else "fewer than 4 bits, a repair and gptq"
        raise RequestError(
            f"{base.id} is a mixture of experts, for which {what} are not there.",
            "Use 4 bits without init, heal, gptq, mean_bits and base_gib.",
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
    if not base.num_experts or request.bits == 16 or request.lora_dropout:
        return 0
    return max(1, r // max(1, base.experts_per_token))


def why_expert_rank(base: ModelFacts, expert_r: int) -> str:
    """The reason of the default."""
    if not expert_r:
        return "16-bit experts would be built anew in every pass; attention alone is adapted"
    k = max(1, base.experts_per_token)
    return f"{k} experts of a token together have the rank of one linear"


def expert_activation_bytes(model: ModelFacts, tokens: int, expert_r: int) -> int:
    """Bytes of the experts of one layer in backward, beside what is kept: some of them in 16 bits, the rows of all
    tokens with their gradients, those of the group at work, and copies of the adapters.

    Counted in experts/products.py.
    """
    if not model.num_experts:
        return 0
    hidden, width = model.hidden_size, model.expert_intermediate_size
    rows = tokens * model.experts_per_token
    an_expert = 3 * hidden * width
    group = min(model.num_experts, max(1, _WEIGHTS_AT_ONCE // max(1, an_expert)))
    of_group = min(_ROWS_AT_ONCE, -(-rows * group // model.num_experts))
    # x, the gradient of the output, the first product, the activation, its gradient, and what comes back.
    working = of_group * (3 * hidden + 2 * width + 3 * width)
    copies = 0
    if expert_r:
        layers = max(1, model.expert_parameters // max(1, an_expert * model.num_experts))
        copies = max(expert_r, _SMALLEST_RANK) * model.expert_sides // layers
    return 2 * (group * an_expert + rows * hidden + working + copies)
