"""How runs differ: their settings side by side, their curves in one chart."""

from collections.abc import Sequence
from dataclasses import dataclass

from qlora_space.app.ui.form import LABELS
from qlora_space.app.ui.render.charts import Series, line_chart, smoothed
from qlora_space.app.ui.render.html import table, text
from qlora_space.core.wording import significant
from qlora_space.plan import Plan, differences
from qlora_space.runs import RunView, best_step

MAX_COMPARED = 4


@dataclass(frozen=True)
class ComparedRun:
    """A run in a comparison of several."""

    name: str
    plan: Plan
    view: RunView


def fork(origin_name: str, origin_id: str, origin: Plan, plan: Plan) -> str:
    """The run that this one was made from, or whose adapter it trains, and a table of the settings that differ."""
    goes_on = plan.adapter == origin_id
    made = f"{'Trains the adapter of' if goes_on else 'Made from'} “{text(origin_name)}”"
    changes = [c for c in differences([origin, plan]) if not (goes_on and c[0] == "adapter")]
    if not changes:
        return f'<p class="fork">{made}, with the same settings.</p>'
    columns = ("Changed", origin_name, "This run")
    return (
        f'<section class="fork"><p>{made}.</p>'
        f"{_table(changes, columns, 'What was changed')}</section>"
    )


def overlay(runs: Sequence[ComparedRun], options: Sequence[str]) -> str:
    """Training and held-out loss of several runs, each with its own colour and dash, and the settings that differ."""
    names = _distinct([run.name for run in runs])
    is_log = "log" in options
    right = float(max(run.view.total_steps for run in runs))
    training = [
        Series(name, smoothed(run.view.series("loss")), f"run-{i}")
        for i, (name, run) in enumerate(zip(names, runs, strict=True))
    ]
    heldout = [
        Series(f"{name}{_best(run)}", run.view.series("eval_loss"), f"run-{i}", True, True)
        for i, (name, run) in enumerate(zip(names, runs, strict=True))
    ]
    charts = line_chart("Training loss, smoothed", training, x_max=right, is_log=is_log)
    charts += line_chart("Held-out loss", heldout, x_max=right, is_log=is_log)
    changes = differences([run.plan for run in runs])
    settings = _table(changes, ("Setting", *names), "How these runs differ")
    same = '<p class="fork">They have the same settings.</p>'
    return f'<div class="compared-charts">{charts}</div>{settings if changes else same}'


def _best(run: ComparedRun) -> str:
    step = best_step(run.view)
    if step is None:
        return ""
    return f", best {significant(dict(run.view.series('eval_loss'))[step])} at step {step:,}, last"


def _table(
    changes: Sequence[tuple[str, tuple[str, ...]]], columns: Sequence[str], name: str
) -> str:
    rows = [(LABELS.get(field, field.replace("_", " ")), *values) for field, values in changes]
    return table(columns, rows, name)


def _distinct(names: Sequence[str]) -> list[str]:
    """Runs may share a name: the second one becomes 'name (2)'."""
    distinct = []
    for i, name in enumerate(names):
        earlier = names[:i].count(name)
        distinct.append(f"{name} ({earlier + 1})" if earlier else name)
    return distinct
