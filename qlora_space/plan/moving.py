"""A run that goes on in another place: what it learns from stays as it was planned, what it runs on is new."""

from qlora_space.core.request import TrainingRequest
from qlora_space.plan.plan import Plan

_OF_THE_MACHINE = (
    "hardware",
    "step_kind",
    "cpu_offload",
    "fp8",
    "gradient_checkpointing",
    "estimate",
)
_KEPT = (
    "max_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_processes",
    "optim",
)


def as_planned(request: TrainingRequest, plan: Plan) -> TrainingRequest:
    """The request with those values of its plan that would be chosen by the hardware, and change what is learned."""
    return request.model_copy(update={name: getattr(plan, name) for name in _KEPT})


def moved(plan: Plan, there: Plan) -> Plan:
    """The plan for the hardware of `there`, which is the plan of `as_planned` on it."""
    update = {name: getattr(there, name) for name in _OF_THE_MACHINE}
    return plan.model_copy(update=update | {"offer": there.offer, "places": there.places})
