"""What to change where a run does not fit: one value each, the one that costs least quality first. Pure arithmetic."""

from collections.abc import Iterator

from qlora_space.core.inspection import Change
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import gib
from qlora_space.plan.batch_size import SAFETY
from qlora_space.plan.plan import Plan
from qlora_space.plan.resolve import least_gib_at

_SHORTEST, _MOST = 256, 3


def ladder(request: TrainingRequest, plan: Plan) -> tuple[tuple[Change, str], ...]:
    """Up to three changes with their labels, each of which alone lets the run fit where it is planned."""
    if plan.estimate.fits:
        return ()
    free = plan.hardware.free_gib * SAFETY
    found = []
    for kind in (_shorter(plan), _fewer_bits(plan)):
        for change, values, label in kind:
            needed = least_gib_at(request.model_copy(update=values), plan)
            if needed is not None and needed <= free:
                found.append((change, f"{label}: {gib(needed)}"))
                break
    return tuple(found[:_MOST])


_Step = tuple[Change, dict[str, object], str]


def _shorter(plan: Plan) -> Iterator[_Step]:
    tokens = plan.max_length // 2
    while tokens >= _SHORTEST:
        change = Change(field="max_length", value=str(tokens))
        yield change, {"max_length": tokens}, f"Longest example of {tokens:,} tokens"
        tokens //= 2


def _fewer_bits(plan: Plan) -> Iterator[_Step]:
    for bits in (8, 4, 3, 2):
        if bits < plan.bits:
            update: dict[str, object] = {"bits": bits, "mean_bits": None, "base_gib": None}
            yield Change(field="bits", value=str(bits)), update, f"{bits} bits"
