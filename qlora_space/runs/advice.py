"""Advice from the loss curves of a run: overfitting, stopping early, more epochs."""

from collections.abc import Callable

from qlora_space.plan import Plan
from qlora_space.runs.view import RunView

_RISEN = 1.02  # held-out loss over its best, for two evaluations or more: not noise
_FALLING = 0.97  # last held-out loss over the one before
_MIN_EVALUATIONS = 3
_SLOW = 2.0  # times the planned length of a step


def best_step(view: RunView) -> int | None:
    """Step of the lowest held-out loss; None before the first evaluation. Step 0 is the base itself."""
    trained = [(loss, step) for step, loss in view.series("eval_loss") if step]
    return min(trained)[1] if trained else None


def slowdown(view: RunView, plan: Plan, is_shared: Callable[[], bool]) -> str:
    """Why the time that is left is longer than planned; '' while steps take about as long as they should.

    `is_shared`: whether others work on the same GPU or cores; asked only where it matters.
    """
    measured = view.seconds_per_step
    if view.status != "training" or measured is None or not plan.estimate.steps:
        return ""
    times = measured * plan.estimate.steps / max(plan.estimate.seconds, 1e-9)
    if times < _SLOW:
        return ""
    where = "GPU" if plan.hardware.device == "cuda" else "machine"
    return f"{times:.0f} times slower than planned" + (
        f": other work on this {where}." if is_shared() else "."
    )


def ended_early(view: RunView, plan: Plan) -> str:
    """Why a run stopped early by itself; '' if it did not."""
    is_whole = view.status != "finished" or view.stopped_by_hand or view.step >= view.total_steps
    if is_whole or not plan.early_stopping_patience:
        return ""
    times = plan.early_stopping_patience
    evaluations = "evaluation" if times == 1 else f"{times} evaluations in a row"
    return (
        f"It ended by itself at step {view.step:,} of {view.total_steps:,}: "
        f"{evaluations} brought no better held-out loss than step {best_step(view) or 0:,}."
    )


def advice(view: RunView, plan: Plan) -> str:
    """Whether the run overfits or could learn more; '' if neither, or before there are enough evaluations."""
    losses = [(step, loss) for step, loss in view.series("eval_loss") if step]
    best = best_step(view)
    if len(losses) < _MIN_EVALUATIONS or best is None:
        return ""
    lowest, last = dict(losses)[best], losses[-1][1]
    num_since = sum(step > best for step, _ in losses)
    if num_since >= 2 and last > _RISEN * lowest:
        return (
            f"It learns the rows by heart: the held-out loss was lowest at step {best:,} "
            f"({lowest:.3g}) and is {last:.3g} now. {_kept(best, view, plan)} "
            "Fewer epochs, more rows or early stopping would help."
        )
    is_whole = view.status == "finished" and view.step >= view.total_steps
    if is_whole and last < _FALLING * losses[-2][1]:
        return (
            f"It could learn more: the held-out loss was still falling at the end, from "
            f"{losses[-2][1]:.3g} at step {losses[-2][0]:,} to {last:.3g}. More epochs would help."
        )
    return ""


def _kept(best: int, view: RunView, plan: Plan) -> str:
    if view.stopped_by_hand:
        return "It was stopped by hand, which keeps the adapter of the last step."
    if not plan.load_best_model_at_end:
        return "The adapter of the last step is kept, as keeping the best one is turned off."
    return f"The adapter of step {best:,} is the one that is kept."
