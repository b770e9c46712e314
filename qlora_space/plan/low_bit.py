"""What the bits of the base decide: the adapter init and the learning rate (docs/LOWBIT.md)."""

import math

from qlora_space.core.errors import RequestError
from qlora_space.core.facts import ModelFacts
from qlora_space.core.options import Init
from qlora_space.core.request import TrainingRequest
from qlora_space.plan.measured_bits import MEASURED_BASES, MeasuredBase
from qlora_space.plan.memory import mean_bits_within, packed_base_gib
from qlora_space.plan.plan import Choices

_MOST_TIMES_AS_LARGE = 4
HEAL_STEPS = 120
HEAL_TOKENS = 2048  # of a step
_LOW_BIT_RATES = {3: 1e-4, 2: 5e-5}


def default_init(bits: int) -> Init:
    """eora below 4 bits, where the quantization error is large; else zero."""
    return "eora" if bits < 4 else "zero"


def measured_like(base: ModelFacts) -> MeasuredBase | None:
    """A base of the same family and about the same size whose widths were measured: larger ones lose less."""
    return next((one for one in MEASURED_BASES if _is_like(one, base)), None)


def _is_like(measured: MeasuredBase, base: ModelFacts) -> bool:
    most, least = sorted((measured.parameters, base.parameters), reverse=True)
    return measured.model_type == base.model_type and most <= _MOST_TIMES_AS_LARGE * least


def as_packed(request: TrainingRequest, base: ModelFacts) -> TrainingRequest:
    """For a base that is quantized already: its own bits and no repair. Raises RequestError for a requested one."""
    if not base.quantization:
        return request
    mixed = request.mean_bits or request.base_gib
    if request.init not in (None, "zero") or request.heal or request.calibrated or mixed:
        raise RequestError(
            f"{base.id} is quantized already, and its 16-bit weights, which a repair needs, are not here.",
            "Leave init, heal, calibrated, mean_bits and base_gib out, or choose the original 16-bit model.",
        )
    return request.model_copy(update={"bits": base.quantized_bits, "init": "zero"})


def with_mixed_bits(
    request: TrainingRequest, base: ModelFacts, choices: Choices
) -> TrainingRequest:
    """`base_gib` becomes `mean_bits`, and `bits` the smaller of the mixed widths, which adapter init and learning rate
    depend on. Raises RequestError for a size that is too small."""
    if request.base_gib:
        request = _within_size(request, base, request.base_gib, choices)
    if not request.mean_bits:
        return request
    return request.model_copy(update={"bits": 2 if request.mean_bits < 3 else 3})


def _within_size(
    request: TrainingRequest, base: ModelFacts, base_gib: float, choices: Choices
) -> TrainingRequest:
    if request.mean_bits:
        raise RequestError(
            f"mean_bits is {request.mean_bits:g} and base_gib is {base_gib:g}, but one follows from the other.",
            "Leave one of them out.",
        )
    size = request.group_size
    bits = math.floor(mean_bits_within(base, base_gib, size) * 100) / 100
    if bits < 2:
        smallest = packed_base_gib(base, 2, size)
        raise RequestError(
            f"base_gib is {base_gib:g}, but {base.id} takes at least {smallest:.2f} GiB: 2 bits in groups of {size}, "
            "and 16 for embeddings and head.",
            f"Set it to {math.ceil(smallest * 100) / 100:g} or more, or choose a smaller base.",
        )
    if bits >= 4:
        return request.model_copy(update={"bits": 4})
    why = f"the base then takes {packed_base_gib(base, bits, size):.2f} of {base_gib:g} GiB"
    return request.model_copy(update={"mean_bits": choices.pick("mean_bits", None, bits, why)})


def check_group_size(base: ModelFacts, group_size: int) -> None:
    """Raises RequestError if the inputs of a layer are not a whole number of groups."""
    width = base.expert_intermediate_size or base.intermediate_size
    sizes = (base.hidden_size, width, base.num_attention_heads * base.head_dim)
    undivided = [n for n in sizes if n % group_size]
    if not undivided:
        return
    fitting = [size for size in (64, 32) if not any(n % size for n in sizes)]
    others = f"Set group_size to {fitting[0]}, or take" if fitting else "Take"
    raise RequestError(
        f"group_size is {group_size}, but {base.id} has layers of {undivided[0]} inputs, which such groups do not "
        "divide.",
        f"{others} 4 bits without init, heal and calibrated.",
    )


def check_repair(request: TrainingRequest) -> None:
    """Raises RequestError for a repair above 4 bits, where there is no quantization error worth one."""
    asked = {
        "heal": request.heal,
        "calibrated": request.calibrated,
        f"init={request.init}": request.init not in (None, "zero"),
    }
    option = next((name for name, is_asked in asked.items() if is_asked), None)
    if request.bits > 4 and option:
        raise RequestError(
            f"{option} repairs what few bits cost, but bits is {request.bits}.",
            "Leave it out, or choose 4 bits or fewer.",
        )


def default_learning_rate(bits: int, base: ModelFacts) -> tuple[float, str]:
    """The rate and its reason: 2e-4 up to 13B, 1e-4 above (QLoRA, arXiv 2305.14314, table 9), less at 3 and 2 bits,
    more for small bases."""
    if bits < 4:
        rate, why = _LOW_BIT_RATES[bits], f"{bits} bits take small updates"
    elif base.parameters > 20e9:
        rate, why = 1e-4, "QLoRA's value for large bases"
    else:
        rate, why = 2e-4, "QLoRA's value for bases up to 13B"
    if base.hidden_size < 2048:
        rate *= small_base_factor(base.hidden_size)
        small = "a small base takes larger updates"
        why = small if bits >= 4 else f"{why}; {small}"
    return float(f"{rate:.1e}"), why


def small_base_factor(hidden_size: int) -> float:
    """How much larger a learning rate is than at a hidden size of 2048 and more (tinker_cookbook/hyperparam_utils.py
    fits the exponent on Llama models)."""
    return max(1.0, (2048 / hidden_size) ** 0.78)
