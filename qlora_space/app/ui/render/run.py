"""A run as HTML: progress, charts, log and result."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from qlora_space.app.ui.render.charts import (
    Point,
    Series,
    Steps,
    line_chart,
    smoothed,
    thinned,
    within,
)
from qlora_space.app.ui.render.html import empty, facts, icon, notice, status_chip, table, text
from qlora_space.app.ui.uploads import shown_name
from qlora_space.core.event_text import event_level, event_text, phase_text, slice_name, slice_text
from qlora_space.core.events import Event, Failed, Phase
from qlora_space.core.wording import (
    age,
    count,
    counted,
    duration,
    gib,
    percent,
    perplexity,
    rate,
    rough_duration,
    significant,
    width,
    without_folders,
)
from qlora_space.plan import Plan
from qlora_space.runs import (
    LossChange,
    Measure,
    QueuePosition,
    Report,
    RowLosses,
    RunView,
    Scores,
    measure_name,
    measured_on,
    points_of,
    verdict,
)

LOG_LINES = 300  # of steps, and of other events; stream.js keeps as many
_ENDINGS = {
    "finished": "All done",
    "failed": "Ended early",
    "cancelled": "Stopped",
    "paused": "Paused",
}
_UNITS = {"data": "rows", "model": "layers", "heal": "steps"}


def head(
    name: str,
    plan: Plan,
    view: RunView,
    queued: QueuePosition | None = None,
    *,
    names_dataset: bool = True,
) -> str:
    """Name, status, what it trains, progress, figures."""
    base = f"{shown_name(plan.base.id)} at {width(plan.mean_width, calibrated=plan.calibrated)}"
    dataset = shown_name(plan.dataset.id) if names_dataset else "a dataset that is not public"
    about = f"{base} on {dataset}"
    started = f"started {age(view.started_at)}" if view.started_at else "not started yet"
    where = " · ".join(
        part for part in (about, f"rank {plan.r}", view.device_label, started) if part
    )
    return (
        f'<div class="run-title"><h2>{text(name)}</h2>{status_chip(view)}</div>'
        f'<p class="run-about">{text(where)}</p>{progress(view, queued)}{figures(view)}'
    )


def progress(view: RunView, queued: QueuePosition | None = None) -> str:
    """A bar with its text: step and time left while training, else the phase."""
    done, total, left, right = _progress_parts(view, queued)
    share = 100 * done / total if total else 0
    busy = " busy" if not view.is_over and not total else ""
    return (
        f'<div class="progress status-{view.status}">'
        f'<div class="progress-words"><span>{text(left)}</span><span>{text(right)}</span></div>'
        f'<div class="track{busy}" role="progressbar" aria-label="Progress" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share:.0f}"><i style="width:{share:.1f}%"></i></div></div>'
    )


def _progress_parts(view: RunView, queued: QueuePosition | None) -> tuple[int, int, str, str]:
    steps = f"Step {view.step:,} of {view.total_steps:,}" if view.total_steps else ""
    if view.is_over:
        return view.step, view.total_steps, steps or _ENDINGS[view.status], _took(view)
    if queued is not None and view.status == "queued":
        left = f"Waiting for {counted(queued.num_before, 'run')} before it"
        when = f"starts in about {rough_duration(queued.starts_in_seconds)}"
        return 0, 0, left, f"“{queued.stalled}” before it is stalled" if queued.stalled else when
    if view.status == "waiting" and view.slice is not None:
        return view.step, view.total_steps, steps, slice_text(view.slice).rstrip(".")
    if view.phase is None:
        return 0, 0, "Getting ready" if view.attempts else "Waiting for the worker to start", ""
    if view.phase.name == "train" and view.total_steps:
        epoch = view.latest("epoch")
        steps += f" · epoch {epoch:.2f}" if epoch is not None else ""
        if view.slice is not None:  # between slices nobody knows how long it waits
            return view.step, view.total_steps, steps, slice_name(view.slice)
        eta = None if view.stalled_for(time.time()) else view.eta_seconds
        return view.step, view.total_steps, steps, f"{rough_duration(eta)} left" if eta else ""
    return view.phase.done, view.phase.total, phase_text(view.phase), _part(view.phase)


def _took(view: RunView) -> str:
    """All of it, from the worker's start to its last event; waiting in the queue is no part of it."""
    if not view.working_since:
        return ""
    which = "last attempt took" if view.attempts > 1 else "took"
    return f"{which} {duration(view.last_at - view.working_since)}"


def _part(phase: Phase) -> str:
    unit = f" {_UNITS[phase.name]}" if phase.name in _UNITS else ""
    return f"{phase.done:,} of {phase.total:,}{unit}" if phase.total > 1 else ""


def figures(view: RunView) -> str:
    """The row of tiles; a dash where nothing is measured yet, so that nothing moves when it is."""
    memory, peak = view.latest("memory_gib"), view.latest("peak_gib")
    now = view.last_at if view.is_over else time.time()
    elapsed = duration(now - view.working_since) if view.working_since else "–"
    tiles = [
        ("Loss", _or_dash(view.latest("loss"), significant), "training"),
        ("Held-out loss", _or_dash(view.latest("eval_loss"), significant), "lower is better"),
        ("Speed", _or_dash(view.latest("tokens_per_second"), rate), "trained text"),
        ("Memory", _or_dash(memory, gib), f"peak {_or_dash(peak, gib)}"),
        ("Elapsed", elapsed, "since start"),
    ]
    items = "".join(
        f'<div class="tile"><span>{name}</span><b>{text(value)}</b><small>{text(note)}</small></div>'
        for name, value, note in tiles
    )
    return f'<div class="tiles">{items}</div>'


def _or_dash(value: float | None, format_value: Callable[[float], str]) -> str:
    return "–" if value is None else format_value(value)


def charts(view: RunView, options: Sequence[str], steps: Steps | None = None) -> str:
    """The loss large, the others small in a row; one x axis for all, of the whole run or of `steps`."""
    right = float(view.total_steps)
    lines = _loss_lines(view, options, steps)
    large = line_chart(
        "Loss, nats per token", lines, x_max=right, is_log="log" in options, steps=steps
    )
    small = "".join(
        line_chart(
            title,
            [Series("latest", view.series(key), "quiet")],
            x_max=right,
            unit=unit,
            num_ticks=2,
            steps=steps,
        )
        for title, key, unit in (
            ("Learning rate", "learning_rate", ""),
            ("Gradient norm", "grad_norm", ""),
            ("Speed, tok/s", "tokens_per_second", " tok/s"),
            ("Memory, GiB", "memory_gib", " GiB"),
        )
    )
    return f'<div class="chart-large">{large}</div><div class="chart-row">{small}</div>'


def _loss_lines(view: RunView, options: Sequence[str], steps: Steps | None) -> list[Series]:
    loss: Sequence[Point] = view.series("loss")
    heldout = Series("held-out", view.series("eval_loss"), "heldout", has_marks=True, has_best=True)
    if "smooth" not in options or len(loss) <= 8:
        return [Series("training", loss, "train"), heldout]
    each = thinned(within(loss, steps))
    # Both lines have a value at each of these; the newest of the run is in the legend.
    kept = {step for step, _ in (*each, loss[-1])}
    smooth = Series("training, smoothed", [p for p in smoothed(loss) if p[0] in kept], "train")
    return [Series("training, not smoothed", each, "faint"), smooth, heldout]


LOG_TITLE = (
    '<div class="log-title"><h3 class="panel-title">Log</h3>'
    '<label>Filter <input type="search" data-log="words" placeholder="words"></label>'
    '<label>Show <select data-log="level"><option value="">everything</option>'
    '<option value="warning">warnings and errors</option><option value="error">errors</option></select></label>'
    '<label><input type="checkbox" data-log="follow" checked> Follow</label>'
    '<button type="button" class="copy" data-copy-from="#log .log">'
    f"{icon('copy')}<span>Copy</span></button>"
    '<button type="button" class="copy" data-save-from="#log .log">Download</button></div>'
)


class Log:
    """Events as sentences: the last 300 steps and the last 300 others. Steps have room of their own, so that they
    never push a warning out of it."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, str]] = deque(maxlen=LOG_LINES)
        self._others: deque[tuple[int, str]] = deque(maxlen=LOG_LINES)

    def add(self, event: Event) -> None:
        if is_step(event):
            self._steps.append((event.seq, _log_line(event)))
        elif _is_logged(event):
            self._others.append((event.seq, _log_line(event)))

    def since(self, seq: int) -> str:
        """Lines of the events from `seq` on; newest first, so that new ones do not move the line being read."""
        new = [line for line in (*self._steps, *self._others) if line[0] >= seq]
        return "".join(markup for _, markup in sorted(new, reverse=True))


def log(events: Iterable[Event]) -> str:
    """All of it as a list."""
    kept = Log()
    for event in events:
        kept.add(event)
    return log_list(kept.since(0))


def log_list(lines: str) -> str:
    return (
        f'<ol class="log" tabindex="0" aria-label="Log">{lines}</ol>'
        if lines
        else empty("Nothing yet")
    )


def is_step(event: Event) -> bool:
    return event.kind == "metric" and "loss" in event.values


def _log_line(event: Event) -> str:
    level, line = event_level(event), without_folders(event_text(event))
    at = time.strftime("%H:%M:%S", time.localtime(event.time))
    step = " data-step" if is_step(event) else ""
    return f'<li class="log-{level}"{step}><time>{at}</time><span>{text(line)}</span></li>'


def _is_logged(event: Event) -> bool:
    """Not what samples and the progress bar show better."""
    match event.kind:
        case "phase":
            return event.done == 0
        case "sample" | "heartbeat":
            return False
    return True


def failure(failed: Failed) -> str:
    """The cause, the line of the log that proves it, what to do."""
    is_figures = failed.line.startswith("{'")  # the trainer's own line about a step proves nothing
    quote = "" if is_figures else text(without_folders(failed.line))
    line = f'<pre tabindex="0">{quote}</pre>' if quote else ""
    proof = f'<p class="proof">The log says:</p>{line}' if line else ""
    return (
        f'<section class="failure" role="alert"><h3>{icon("error")}This run failed</h3>'
        f'<p class="cause">{text(without_folders(failed.cause))}</p>{proof}'
        f'<p class="todo"><strong>What to do:</strong> {text(without_folders(failed.hint))}</p></section>'
    )


def stalled(why: str) -> str:
    """Why the worker makes no progress, and what to do."""
    hint = "If this does not pass, stop it and keep what it saved; Resume then goes on from there."
    return notice("warning", f"This run is stalled: {why}.", hint)


def slices(view: RunView) -> str:
    """What a run in slices asks of whoever started it; '' for any other, and once it is over."""
    now = view.slice
    if now is None or view.is_over:
        return ""
    to_go = f" About {counted(now.to_go, 'slice')} to go, this one among them." if now.to_go else ""
    what = f"Keep this page open: each slice of GPU time is asked for by it, and your daily ZeroGPU quota pays.{to_go}"
    return notice(
        "info", what, "After every slice all is saved; a page that is opened again goes on."
    )


_SCORES = "before-after scores"  # on a phone each interval has a line of its own
_OUTCOME_ICONS = {"better": "done", "worse": "warning", "unclear": "info"}


def result(report: Report) -> str:
    """Before and after, in words that the figures bear out, and in a table."""
    found = verdict(report)
    facts_line = "".join(f"<p>{text(fact)}</p>" for fact in found.facts)
    warnings = "".join(notice("warning", words) for words in found.warnings)
    return (
        f'<section class="result result-{found.outcome}">'
        f"<h3>{icon(_OUTCOME_ICONS[found.outcome])}{text(found.headline)}</h3>"
        f"{facts_line}{warnings}{_before_and_after(report)}{_forgetting(report)}{_measured(report)}</section>"
    )


def _before_and_after(report: Report) -> str:
    """Every measure of base and adapted model, with the interval of its change and the rows it rests on."""
    by_name = {score.name: score for score in report.scores}
    base, trained = by_name.get("base"), by_name.get("trained")
    if base is None or trained is None:
        return ""
    heldout = _loss_change(report.heldout_change, report.num_eval_rows)
    general = _loss_change(report.general_change, _num_rows(report.general_rows))
    few = (("Exact answers", base.exact_match, trained.exact_match, "", percent),)
    rows = [
        (
            "Held-out loss, lower is better",
            base.heldout_loss,
            trained.heldout_loss,
            heldout,
            significant,
        ),
        ("Held-out perplexity", _perplexity(base), _perplexity(trained), "", significant),
        *((measure_name(m), *m.means, _score_change(m), percent) for m in report.measures),
        *(() if report.measures else few),
        (
            "General loss, on other text",
            base.general_loss,
            trained.general_loss,
            general,
            significant,
        ),
    ]
    cells = [(n, f(b), f(a), change) for n, b, a, change, f in rows if None not in (b, a)]
    if not cells:
        return ""
    header = ("Measure", "Base", "Adapted", "Change, 95 % interval")
    return table(header, cells, "Before and after", _SCORES)


def _forgetting(report: Report) -> str:
    """General questions before and after: of all of them, and by kind."""
    if not report.forgetting:
        return ""
    cells = [
        (
            measure_name(m),
            *(f"{round(mean * m.num_rows)} of {m.num_rows}" for mean in m.means),
            _score_change(m),
        )
        for m in report.forgetting
    ]
    header = ("General questions", "Base", "Adapted", "Change, 95 % interval")
    return table(header, cells, "General questions before and after", _SCORES)


def _loss_change(change: LossChange | None, num_rows: int) -> str:
    """Its interval with signs, and the rows that it rests on."""
    rows = [counted(num_rows, "row")] if num_rows else []
    if change is None:
        return "".join(rows)
    signs = ("+" if value > 0 else "" for value in (change.low, change.high))
    low, high = (
        sign + significant(value).replace("-", "−")
        for sign, value in zip(signs, (change.low, change.high), strict=True)
    )
    return ", ".join([f"{low} to {high}", *rows])


def _score_change(measure: Measure) -> str:
    rows = counted(measure.num_rows, "row")
    if measure.change is None:
        return f"not enough to tell, {rows}"
    return f"{points_of(measure.change)}, {rows}"


def _num_rows(rows: RowLosses | None) -> int:
    return len(rows.tokens) if rows else 0


def _perplexity(scores: Scores) -> float | None:
    return None if scores.heldout_loss is None else perplexity(scores.heldout_loss)


def _measured(report: Report) -> str:
    return facts(
        [
            ("Adapter of", f"step {report.adapter_step:,}" if report.adapter_step else ""),
            ("Measured on", measured_on(report)),
            ("Trained", f"{counted(report.steps, 'step')}, {count(report.trained_tokens)} tokens"),
            ("Training steps took", duration(report.train_seconds)),
            ("Peak memory", gib(report.peak_gib)),
        ]
    )
