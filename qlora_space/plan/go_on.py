"""Training that goes on from an adapter: its rank, scale and layers are the run's."""

from pathlib import PurePath

from qlora_space.core.adapter_facts import AdapterFacts
from qlora_space.core.errors import RequestError
from qlora_space.core.facts import ModelFacts
from qlora_space.core.request import TrainingRequest
from qlora_space.core.targets import ALL_LINEAR, chosen_linears
from qlora_space.plan.plan import Choices
from qlora_space.plan.targets import linears_of

_WHY = "that of the adapter that training goes on from"


def as_adapter_says(
    request: TrainingRequest, start: AdapterFacts | None, base: ModelFacts, choices: Choices
) -> TrainingRequest:
    """The request with everything that the adapter decides; as it is without one.

    Raises RequestError for an adapter of another base, one that is more than LoRA, or a request that wants another.
    """
    if start is None:
        return request
    _check_kind(request, start)
    _check_base(request, start, base)
    decided = {"r": start.r, "lora_alpha": start.lora_alpha}
    if base.num_experts:
        decided["expert_r"] = start.expert_r
    for name, value in decided.items():
        _check_same(name, getattr(request, name), value, None)
        choices.pick(name, None, value, _WHY)
    fixed = {
        "use_rslora": start.use_rslora,
        "target_modules": _targets(request, start, base),
        "init": "zero",
    }
    _check_same("use_rslora", request.use_rslora, start.use_rslora, False)
    return request.model_copy(update=decided | fixed)


def _check_kind(request: TrainingRequest, start: AdapterFacts) -> None:
    if start.special:
        raise RequestError(
            f"Training cannot go on from {request.adapter}: it {start.special}.",
            "Choose a LoRA adapter, or leave adapter out.",
        )
    if start.recipe.is_packed:
        raise RequestError(
            f"Training cannot go on from {request.adapter}: it also repairs the base that it was trained on, at "
            f"{start.recipe.bits} bits.",
            "Choose an adapter of a base in 4, 8 or 16 bits.",
        )
    asked = next((n for n in ("init", "heal", "calibrated", "use_dora") if getattr(request, n)), "")
    if asked and getattr(request, asked) != "zero":
        raise RequestError(
            f"{asked} goes with a new adapter, but training goes on from {request.adapter}.",
            "Leave one of them out.",
        )
    if request.bits < 4:
        raise RequestError(
            f"bits is {request.bits}, where the adapter starts as the repair of the base, but training goes on from "
            f"{request.adapter}.",
            "Use 4, 8 or 16 bits.",
        )


def _check_base(request: TrainingRequest, start: AdapterFacts, base: ModelFacts) -> None:
    """By the id; by the name of the folder for one of a machine. A commit counts where both are known."""
    if start.base not in (base.id, PurePath(base.id).name):
        raise RequestError(
            f"{request.adapter} was trained on {start.base}, but base is {base.id}.",
            f"Choose {start.base} as base.",
        )
    if base.source == "hub" and start.base_revision not in ("", base.sha):
        raise RequestError(
            f"{request.adapter} was trained on commit {start.base_revision[:12]} of {base.id}, but base_revision "
            f"gives {base.sha[:12]}.",
            f"Use {start.base_revision} as base_revision.",
        )


def _targets(request: TrainingRequest, start: AdapterFacts, base: ModelFacts) -> str:
    """As target_modules has them. Raises RequestError for layers that the base does not have, or others than asked."""
    known = {one.name for one in linears_of(base)}
    if unknown := sorted(set(start.linears) - known):
        raise RequestError(
            f"{request.adapter} is on {unknown[0]}, which {base.id} does not have.",
            "Choose the base that it was trained on.",
        )
    if request.target_modules != ALL_LINEAR:
        asked = chosen_linears(known, request.target_modules)
        if asked != set(start.linears):
            _refuse("target_modules", request.target_modules, ",".join(start.linears))
    return ALL_LINEAR if known == set(start.linears) else ",".join(start.linears)


def _check_same(name: str, asked: object, given: object, unset: object) -> None:
    if asked not in (unset, given):
        _refuse(name, asked, given)


def _refuse(name: str, asked: object, given: object) -> None:
    raise RequestError(
        f"{name} is {asked}, but the adapter that training goes on from has {given}.",
        f"Leave {name} out.",
    )
