"""The adapter of a run: its rank, what it is put on and what it starts as; which combinations cannot work."""

from dataclasses import dataclass

from qlora_space.core.errors import RequestError
from qlora_space.core.facts import ModelFacts
from qlora_space.core.options import Init, Preset
from qlora_space.core.request import TrainingRequest
from qlora_space.core.targets import ALL_LINEAR, chosen_linears
from qlora_space.plan.kinds import check_blocks
from qlora_space.plan.low_bit import check_group_size, check_repair, default_init
from qlora_space.plan.mixtures import check_mixture, expert_rank, why_expert_rank
from qlora_space.plan.plan import Choices
from qlora_space.plan.targets import linears_of

_USUAL_RANK = "enough for most tasks; more for many facts"


@dataclass(frozen=True)
class Adapter:
    """The LoRA adapter, and whether the base under it is quantized by the calibration text, and by somebody else than
    bitsandbytes."""

    init: Init
    calibrated: bool
    r: int
    expert_r: int
    lora_alpha: int
    is_packed: bool


def choose_adapter(request: TrainingRequest, base: ModelFacts, choices: Choices) -> Adapter:
    """Raises RequestError for a combination that cannot work."""
    init = _init(request, choices)
    is_low_bit = request.bits < 4
    default = 32 if is_low_bit or request.preset is Preset.THOROUGH else 16
    why = "it also has the base to repair" if is_low_bit else _USUAL_RANK
    r = choices.pick("r", request.r, default, why)
    expert_r = _expert_rank(request, base, r, choices)
    why = "equal to r: the adapter is added unscaled"
    if request.use_rslora:
        why = f"equal to r: the adapter is added {r**0.5:.3g}-fold, as in peft's comparison"
    lora_alpha = choices.pick("lora_alpha", request.lora_alpha, r, why)
    calibrated = _calibrated(request, base, choices)
    is_repaired = init != "zero" or request.heal
    is_packed = is_low_bit or is_repaired or calibrated or base.quantization == "gptq"
    if is_packed and not base.quantization and request.bits <= 4:
        check_blocks(base, request.bits)
        check_group_size(base, request.group_size)
    check_mixture(request, base)
    _check_targets(request, base, init, expert_r)
    _check_dora(request, base, is_packed=is_packed)
    return Adapter(init, calibrated, r, expert_r, lora_alpha, is_packed)


def _init(request: TrainingRequest, choices: Choices) -> Init:
    check_repair(request)
    default = default_init(request.bits)
    if request.bits > 4:
        return default
    why = "starts as the best repair of the base" if default == "eora" else "4 bits lose little"
    return choices.pick("init", request.init, default, why)


def _calibrated(request: TrainingRequest, base: ModelFacts, choices: Choices) -> bool:
    if request.bits > 4 or base.quantization:
        return False
    default = request.bits < 4 and not base.num_experts
    if default:
        why = "much closer to the original than by the weights alone"
    else:
        why = "its experts are not" if base.num_experts else "NF4 takes no minutes and loses little"
    return choices.pick("calibrated", request.calibrated, default, why)


def _expert_rank(request: TrainingRequest, base: ModelFacts, r: int, choices: Choices) -> int:
    expert_r = expert_rank(request, base, r)
    if not base.num_experts:
        return expert_r
    why = why_expert_rank(request, base, expert_r)
    return choices.pick("expert_r", request.expert_r, expert_r, why)


def _check_targets(request: TrainingRequest, base: ModelFacts, init: Init, expert_r: int) -> None:
    """Raises RequestError for layers that the base does not have, or that SRR needs an adapter on."""
    if request.target_modules == ALL_LINEAR:
        return
    chosen = chosen_linears([one.name for one in linears_of(base)], request.target_modules)
    if not chosen and not expert_r:
        raise RequestError(
            f"target_modules is {request.target_modules}, and {base.id} has no such linear layers.",
            "Write all-linear, or names of its layers.",
        )
    if init == "srr":
        raise RequestError(
            "init is srr, which leaves a part of every layer to its adapter, but target_modules is "
            f"{request.target_modules}.",
            "Use eora, or all-linear.",
        )


def _check_dora(request: TrainingRequest, base: ModelFacts, *, is_packed: bool) -> None:
    """Raises RequestError where peft cannot read the size of a weight, or would change the repair."""
    if not request.use_dora:
        return
    if is_packed or request.bits == 8:
        raise RequestError(
            "use_dora needs weights that peft can read, which a base in 8 bits or fewer than 4, a repaired one and a "
            "GPTQ checkpoint do not have.",
            "Leave it out, or use 4 bits without init, heal and calibrated.",
        )
    if base.num_experts and request.expert_r:
        raise RequestError(
            f"use_dora does not work on experts, but expert_r is {request.expert_r}.",
            "Leave one of them out.",
        )
