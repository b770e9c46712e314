"""Is training still sound? Checks the loss and the gradient norm, which are reported anyway.

Thresholds are far outside what normal runs do (docs/RELIABILITY.md): a trip means that something broke.
"""

import math
import statistics

from pydantic import BaseModel, ConfigDict

MAX_ROLLBACKS = 2
_EMA = 0.1
_LOSS_ABOVE_BEST_NATS = 2.0
_LOSS_OVER_BEST = 2.0
_NORM_OVER_MEDIAN = 1000.0
_NORM_WINDOW = 50
_NORM_NEEDS = 20
_STEPS_IN_A_ROW = 3


class Unsound(Exception):
    """Training broke down; the text says what was seen."""


class GuardState(BaseModel):
    """What the guards remember from step to step; part of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ema: float | None = None
    best_ema: float | None = None
    norms: tuple[float, ...] = ()
    high_norms: int = 0

    @property
    def is_calm(self) -> bool:
        """Nothing points to an explosion that has begun: a state worth going back to."""
        if self.ema is None or self.best_ema is None:
            return True
        halfway = (self.best_ema + _limit(self.best_ema)) / 2
        return self.ema <= halfway and not self.high_norms


def check(
    state: GuardState, loss: float, grad_norm: float, *, step_was_skipped: bool = False
) -> GuardState:
    """The new state. Raises Unsound. A loss scaler skips steps whose norm overflowed, which is no fault."""
    if not math.isfinite(loss):
        raise Unsound(f"the loss is {loss}")
    if step_was_skipped:
        return state
    if not math.isfinite(grad_norm):
        raise Unsound(f"the gradient norm is {grad_norm}")
    ema = loss if state.ema is None else state.ema + _EMA * (loss - state.ema)
    best = min(ema, ema if state.best_ema is None else state.best_ema)
    if ema > _limit(best):
        raise Unsound(f"the loss went up to {loss:.3g}; its mean was {best:.3g} at best")
    median = statistics.median(state.norms) if len(state.norms) >= _NORM_NEEDS else math.inf
    high = state.high_norms + 1 if grad_norm > _NORM_OVER_MEDIAN * median else 0
    if high >= _STEPS_IN_A_ROW:
        raise Unsound(f"the gradient norm is {grad_norm:.3g}; its median was {median:.3g}")
    norms = state.norms if high else (*state.norms, grad_norm)[-_NORM_WINDOW:]
    return GuardState(ema=ema, best_ema=best, norms=norms, high_norms=high)


def _limit(best_ema: float) -> float:
    return max(best_ema + _LOSS_ABOVE_BEST_NATS, best_ema * _LOSS_OVER_BEST)
