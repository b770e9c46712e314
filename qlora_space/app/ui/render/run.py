"""A run as HTML: where it stands, its charts, samples, log and result."""

import time
from collections.abc import Callable, Sequence

from qlora_space.app.ui.render.charts import Point, Series, line_chart, smoothed
from qlora_space.app.ui.render.html import empty, facts, notice, status_chip, table, text
from qlora_space.app.ui.render.icons import icon
from qlora_space.app.ui.uploads import shown_name
from qlora_space.core.events import (
    Checkpoint,
    Event,
    Failed,
    Gate,
    Metric,
    Note,
    Phase,
    Rollback,
    Started,
)
from qlora_space.core.wording import (
    age,
    count,
    counted,
    duration,
    gib,
    num_bytes,
    percent,
    rate,
    significant,
    width,
    without_folders,
)
from qlora_space.plan import Plan
from qlora_space.runs import QueuePosition, Report, RunView, Scores

_LOG_LINES = 300
_PHASES = {
    "queue": "Waiting for the run before it",
    "disk": "Waiting for space on the disk",
    "publish": "Publishing",
    "data": "Reading and tokenizing the data",
    "model": "Loading the base",
    "heal": "Healing the base",
    "evaluate": "Measuring on held-out rows",
    "train": "Training",
    "save": "Saving the adapter",
    "report": "Measuring before and after",
}
_UNITS = {"data": "rows", "model": "layers", "heal": "steps"}


def head(name: str, plan: Plan, view: RunView, place: QueuePosition | None = None) -> str:
    """Name, status, what it is, progress, figures. `place` is that in the queue."""
    base = f"{shown_name(plan.base.id)} at {width(plan.mean_width, plan.gptq)}"
    about = f"{base} on {shown_name(plan.dataset.id)}"
    started = f"started {age(view.started_at)}" if view.started_at else "not started yet"
    where = " · ".join(
        part for part in (about, f"rank {plan.r}", view.device_label, started) if part
    )
    return (
        f'<div class="run-title"><h2>{text(name)}</h2>{status_chip(view)}</div>'
        f'<p class="run-about">{text(where)}</p>{progress(view, place)}{figures(view)}'
    )


def progress(view: RunView, place: QueuePosition | None = None) -> str:
    """A bar with words: step and time left while training, else the phase."""
    done, total, left, right = _standing(view, place)
    share = 100 * done / total if total else 0
    busy = " busy" if not view.is_over and not total else ""
    return (
        f'<div class="progress status-{view.status}">'
        f'<div class="progress-words"><span>{text(left)}</span><span>{text(right)}</span></div>'
        f'<div class="track{busy}" role="progressbar" aria-label="Progress" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share:.0f}"><i style="width:{share:.1f}%"></i></div></div>'
    )


def _standing(view: RunView, place: QueuePosition | None) -> tuple[int, int, str, str]:
    steps = f"Step {view.step:,} of {view.total_steps:,}" if view.total_steps else ""
    if view.is_over:
        words = {
            "finished": "All done",
            "failed": "Ended early",
            "cancelled": "Stopped",
            "paused": "Paused",
        }
        took = f"took {duration(view.last_at - view.started_at)}" if view.started_at else ""
        return view.step, view.total_steps, steps or words[view.status], took
    if place is not None and view.status == "queued":
        left = f"Waiting for {counted(place.num_before, 'run')} before it"
        when = f"starts in about {duration(place.starts_in_seconds)}"
        return 0, 0, left, f"“{place.stalled}” before it is stalled" if place.stalled else when
    if view.phase is None:
        return 0, 0, "Getting ready" if view.attempts else "Waiting for the worker to start", ""
    if view.phase.name == "train" and view.total_steps:
        epoch = view.latest("epoch")
        steps += f" · epoch {epoch:.2f}" if epoch is not None else ""
        eta = None if view.stalled_for(time.time()) else view.eta_seconds
        return view.step, view.total_steps, steps, f"{duration(eta)} left" if eta else ""
    return view.phase.done, view.phase.total, _doing(view.phase), _part(view.phase)


def _doing(phase: Phase) -> str:
    """A base that comes layer by layer is being quantized here."""
    is_quantized_here = phase.name == "model" and phase.total > 1
    return "Quantizing the base" if is_quantized_here else _PHASES[phase.name]


def _part(phase: Phase) -> str:
    unit = f" {_UNITS[phase.name]}" if phase.name in _UNITS else ""
    return f"{phase.done:,} of {phase.total:,}{unit}" if phase.total > 1 else ""


def figures(view: RunView) -> str:
    """The row of tiles; a dash where nothing was measured, so that nothing moves when it is."""
    memory, peak = view.latest("memory_gib"), view.latest("peak_gib")
    now = view.last_at if view.is_over else time.time()
    tiles = [
        ("Loss", _or_dash(view.latest("loss"), significant), "training"),
        ("Held-out loss", _or_dash(view.latest("eval_loss"), significant), "lower is better"),
        ("Speed", _or_dash(view.latest("tokens_per_second"), rate), "trained text"),
        ("Memory", _or_dash(memory, gib), f"peak {_or_dash(peak, gib)}"),
        (
            "Elapsed",
            duration(now - view.working_since) if view.working_since else "–",
            "since start",
        ),
    ]
    items = "".join(
        f'<div class="tile"><span>{name}</span><b>{text(value)}</b><small>{text(note)}</small></div>'
        for name, value, note in tiles
    )
    return f'<div class="tiles">{items}</div>'


def _or_dash(value: float | None, words: Callable[[float], str]) -> str:
    return "–" if value is None else words(value)


def charts(view: RunView, options: Sequence[str]) -> str:
    """Loss large, the others small beside each other; one x axis for all."""
    is_log = "log" in options
    loss: Sequence[Point] = view.series("loss")
    lines = [Series("training", loss, "train")]
    if "smooth" in options and len(loss) > 8:
        lines = [
            Series("each step", loss, "faint"),
            Series("training, smoothed", smoothed(loss), "train"),
        ]
    lines.append(
        Series("held-out", view.series("eval_loss"), "heldout", has_marks=True, has_best=True)
    )
    right = float(view.total_steps)
    large = line_chart("Loss", lines, x_max=right, is_log=is_log)
    small = "".join(
        line_chart(
            title, [Series(name, view.series(key), css)], x_max=right, unit=unit, num_ticks=2
        )
        for title, name, key, css, unit in (
            ("Learning rate", "now", "learning_rate", "quiet", ""),
            ("Gradient norm", "now", "grad_norm", "quiet", ""),
            ("Speed", "now", "tokens_per_second", "quiet", " tok/s"),
            ("Memory", "now", "memory_gib", "quiet", " GiB"),
        )
    )
    return f'<div class="chart-large">{large}</div><div class="chart-row">{small}</div>'


LOG_TITLE = (
    '<div class="log-title"><h3 class="panel-title">Log</h3>'
    '<button type="button" class="copy" data-copy-from="#log .log">'
    f"{icon('copy')}<span>Copy</span></button>"
    '<button type="button" class="copy" data-save-from="#log .log">Download</button></div>'
)


def log(events: Sequence[Event]) -> str:
    """Events as sentences, newest first, so that new ones do not move what is being read."""
    lines = [(e.time, *said) for e in events if (said := sentence(e))]
    items = "".join(
        f'<li class="log-{level}"><time>{time.strftime("%H:%M:%S", time.localtime(at))}</time>'
        f"<span>{text(without_folders(words))}</span></li>"
        for at, level, words in reversed(lines[-_LOG_LINES:])
    )
    return (
        f'<ol class="log" tabindex="0" aria-label="Log">{items}</ol>'
        if items
        else empty("Nothing yet")
    )


def sentence(event: Event) -> tuple[str, str] | None:
    """(level, words) of an event; None for those that the charts tell better."""
    match event:
        case Started(place=place, resume_step=step):
            return "info", f"Started on {place}" + (
                f", going on after step {step:,}." if step else "."
            )
        case Phase(done=0):
            return "info", f"{_doing(event)}."
        case Metric(step=step, values=values) if "eval_loss" in values:
            return "info", f"Step {step:,}: held-out loss {significant(values['eval_loss'])}."
        case Checkpoint(step=step, num_bytes=size, seconds=seconds):
            return "info", f"Step {step:,}: saved {num_bytes(size)} in {duration(seconds)}."
        case Gate(is_broken=is_broken, why=why):
            return "error" if is_broken else "info", why
        case Note(level=level, text=words):
            return level, words
        case Rollback(step=step, to_step=to_step, why=why):
            return (
                "warning",
                f"Step {step:,}: {why}. Going on from step {to_step:,} with half the learning rate.",
            )
        case Failed(cause=cause):
            return "error", cause
    return _ending(event)


def _ending(event: Event) -> tuple[str, str] | None:
    if event.kind == "finished":
        return "info", "Stopped; the adapter was kept." if event.stopped_early else "Done."
    words = {"cancelled": "Stopped", "paused": "Paused"}.get(event.kind)
    return ("info", f"{words} at step {event.step:,}.") if words else None  # type: ignore[union-attr]


def failure(failed: Failed) -> str:
    """What, why, the line that proves it, what to do."""
    is_figures = failed.line.startswith("{'")  # the trainer's own print of a step proves nothing
    words = "" if is_figures else text(without_folders(failed.line))
    line = f'<pre tabindex="0">{words}</pre>' if words else ""
    proof = f'<p class="proof">The log says:</p>{line}' if line else ""
    return (
        f'<section class="failure" role="alert"><h3>{icon("error")}This run failed</h3>'
        f'<p class="cause">{text(without_folders(failed.cause))}</p>{proof}'
        f'<p class="todo"><strong>What to do:</strong> {text(without_folders(failed.hint))}</p></section>'
    )


def stalled(why: str) -> str:
    """What is known of a worker that does not get on, and what to do."""
    hint = "If this does not pass, stop it and keep what it saved; Resume then goes on from there."
    return notice("warning", f"This run is stalled: {why}.", hint)


def result(report: Report) -> str:
    """Before and after, in a sentence and a table."""
    by_name = {score.name: score for score in report.scores}
    base, trained = by_name.get("base"), by_name.get("trained")
    if base is None or trained is None:
        return notice("info", "Nothing was measured on held-out rows.")
    rows = [
        ("Held-out loss, lower is better", base.heldout_loss, trained.heldout_loss, significant),
        ("Exact answers", base.exact_match, trained.exact_match, percent),
        ("General loss, on other text", base.general_loss, trained.general_loss, significant),
    ]
    cells = [(n, words(b), words(a)) for n, b, a, words in rows if b is not None and a is not None]
    note = facts(
        [
            ("Adapter of", f"step {report.adapter_step:,}" if report.adapter_step else ""),
            ("Measured on", counted(report.num_eval_rows, "held-out row")),
            ("Trained", f"{counted(report.steps, 'step')}, {count(report.trained_tokens)} tokens"),
            ("Took", duration(report.total_seconds)),
            ("Peak memory", gib(report.peak_gib)),
        ]
    )
    figures_table = table(("", "Base", "Adapted"), cells, "Before and after", "before-after")
    return (
        f'<section class="result"><h3>{icon("done")}{text(verdict(base, trained))}</h3>'
        f"{figures_table}{note}</section>"
    )


def verdict(base: Scores, trained: Scores) -> str:
    """The outcome in one plain sentence: of the exact answers if they moved, else of the loss."""
    before, after = base.exact_match, trained.exact_match
    has_loss = base.heldout_loss is not None and trained.heldout_loss is not None
    if before is not None and after is not None and (before != after or not has_loss):
        return f"Exact answers: {percent(before)} → {percent(after)}"
    if base.heldout_loss is not None and trained.heldout_loss is not None:
        losses = (base.heldout_loss, trained.heldout_loss)
        return f"Held-out loss: {significant(losses[0])} → {significant(losses[1])}"
    return "The adapter is ready"
