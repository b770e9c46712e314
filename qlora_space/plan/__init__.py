"""From the request to the plan: every number fixed, with its reason, and what it will cost."""

from qlora_space.plan.eval_cost import holds_out_pieces
from qlora_space.plan.evaluation import time_in_words
from qlora_space.plan.held_out import (
    MAX_HELD_OUT_ROWS,
    default_eval_fraction,
    most_held_out,
)
from qlora_space.plan.kinds import special
from qlora_space.plan.ladder import ladder
from qlora_space.plan.memory import KEPT_FOR_SPEED, host_gib
from qlora_space.plan.moving import as_planned, moved
from qlora_space.plan.places import cheapest, chosen_job, flavor, offer_in_words, offers
from qlora_space.plan.plan import (
    Choice,
    Estimate,
    MemoryPart,
    Plan,
    differences,
    settings_of,
)
from qlora_space.plan.resolve import (
    check_startable,
    default_max_length,
    least_gib_at,
    num_steps,
    resolve,
)
from qlora_space.plan.step_kind import why_base_is_plain, why_plain

__all__ = [
    "KEPT_FOR_SPEED",
    "MAX_HELD_OUT_ROWS",
    "Choice",
    "Estimate",
    "MemoryPart",
    "Plan",
    "as_planned",
    "cheapest",
    "check_startable",
    "chosen_job",
    "default_eval_fraction",
    "default_max_length",
    "differences",
    "flavor",
    "holds_out_pieces",
    "host_gib",
    "ladder",
    "least_gib_at",
    "most_held_out",
    "moved",
    "num_steps",
    "offer_in_words",
    "offers",
    "resolve",
    "settings_of",
    "special",
    "time_in_words",
    "why_base_is_plain",
    "why_plain",
]
