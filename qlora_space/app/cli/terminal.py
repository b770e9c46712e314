"""What the command line prints for people: plain text on stderr, tables with rich."""

import importlib.metadata
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from typing_extensions import override

from qlora_space.core.comparison import PANES, ComparedRow, Done
from qlora_space.core.event_text import event_text
from qlora_space.core.events import Event, Metric
from qlora_space.core.facts import Hardware
from qlora_space.core.inspection import Inspection
from qlora_space.core.scoring import SCORE_NAMES
from qlora_space.core.wording import counted, duration, perplexity, rough_duration, visible
from qlora_space.hub.deploy import Deployment
from qlora_space.plan import Plan, cheapest, offer_in_words, special, time_in_words
from qlora_space.runs import (
    Quality,
    QueuePosition,
    Report,
    RunFolder,
    RunView,
    in_words,
    measure_name,
    verdict,
)

_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "gradio",
    "huggingface_hub",
)
_STEPS_BETWEEN_LINES = 10
_INDENT = 7  # of what belongs to "Data   ", "Base   ", "Plan   "
_PIPE_COLUMNS = 100_000  # off a terminal a row is one line, however long
_MAX_ANSWER_COLUMNS = 120


def emit(text: str) -> None:
    """One line or more on stderr, at once. What others wrote in it gives the terminal no orders."""
    sys.stderr.write(visible(text) + "\n")
    sys.stderr.flush()


def _emit_table(table: Table, indent: int = 0) -> None:
    """Wrapped inside its columns on a terminal; plain, with one line per row, on a pipe or in a file."""
    width = None if sys.stderr.isatty() else _PIPE_COLUMNS
    console = Console(file=sys.stderr, width=width, markup=False, emoji=False, highlight=False)
    console.print(Padding(table, (0, 0, 0, indent), expand=False))


class _Table(Table):
    """Of texts that give the terminal no orders."""

    @override
    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        shown = (visible(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, **options)


def _table(*columns: str, num_left: int = 1, show_header: bool = True) -> Table:
    """A table without lines; the first `num_left` columns are text, the others figures."""
    table = _Table(box=None, pad_edge=False, show_header=show_header)
    for number, name in enumerate(columns):
        justify = "left" if number < num_left else "right"
        table.add_column(name, justify=justify, overflow="fold")
    return table


def show_inspection(inspection: Inspection) -> None:
    lengths = inspection.lengths
    emit(
        f"Data   {inspection.dataset.id}: {inspection.num_rows:,} rows, "
        f"read as {inspection.format.value} ({inspection.reason})"
    )
    emit(
        f"       {lengths.mean:.0f} tokens a row on average, the longest {lengths.max:,}; "
        f"{lengths.trained_fraction:.0%} of tokens are trained on"
    )
    if answers := inspection.dataset.answers:
        emit(f"       answers are scored by: {SCORE_NAMES[answers.score]} ({answers.why})")
    for problem in inspection.problems:
        emit(f"       {problem.severity}: {problem.message} {problem.fix}")
    if inspection.samples:
        emit("       a row as the model sees it, trained tokens in [brackets]:")
        emit(textwrap.indent(_bracketed(inspection), "         "))


def _bracketed(inspection: Inspection) -> str:
    pieces, inside = [], False
    for token in inspection.samples[0].tokens[:200]:
        if token.trained != inside:
            pieces.append("[" if token.trained else "]")
            inside = token.trained
        pieces.append(token.text)
    return "".join(pieces) + ("]" if inside else "")


def show_plan(plan: Plan) -> None:
    estimate = plan.estimate
    emit(
        f"Base   {plan.base.id}: {plan.base.parameters / 1e6:,.1f} M parameters "
        f"at {plan.mean_width:g} bits, on {plan.device_label}"
    )
    if kind := special(plan.base):
        emit(f"       {'; '.join(kind)}")
    about = "" if estimate.is_exact else "about "
    emit(
        f"Rows   {about}{counted(estimate.rows, 'row')}, {estimate.row_tokens:,} tokens; "
        f"held out: {estimate.held_out_rows or 'none'}"
    )
    steps = counted(estimate.steps, "step")
    steps = steps if plan.max_steps > 0 else about + steps
    memory = f"{estimate.peak_gib:.1f} GiB of {plan.hardware.free_gib:.1f} free"
    if estimate.least_gib < estimate.peak_gib:
        memory += f" (needs at least {estimate.least_gib:.1f})"
    emit(f"Plan   {steps}, about {time_in_words(estimate)}, {memory}")
    _show_places(plan)
    if plan.publishing:
        emit(f"Publish {plan.publishing.in_words} {plan.publishing.fix}".rstrip())
    table = _table("Setting", "Value", "Why", num_left=3)
    for choice in plan.choices:
        table.add_row(choice.name, str(choice.value), choice.why)
    _emit_table(table, _INDENT)


def _show_places(plan: Plan) -> None:
    """Nothing where there is this machine alone."""
    if plan.offer:
        emit(f"Place  a job of HF Jobs on {plan.offer.label}: {offer_in_words(plan.offer)}")
    jobs = [offer for offer in plan.places if offer.kind == "job"]
    if not jobs or plan.offer:
        return
    if best := cheapest(jobs):
        emit(
            f"       or as a job: {offer_in_words(best)} on {best.label} (--place job --flavor {best.flavor})"
        )
    elif not plan.estimate.fits:
        emit(f"       nor as a job: {jobs[0].problem or 'it fits on no machine of HF Jobs'}")


def show_event(event: Event, view: RunView) -> None:
    """Every event that a person follows a run by. Left out: what comes too often (most steps, checkpoints,
    sampled answers, heartbeats, the progress of a phase, each evaluation's own phase)."""
    match event.kind:
        case "metric":
            _show_metric(event, view)
        case "phase":
            if event.done == 0 and event.name not in ("train", "evaluate"):
                emit(event_text(event))
        case "sample" | "checkpoint" | "heartbeat":
            pass
        case "failed":
            emit(f"Failed: {event_text(event)} {event.hint}")
            if event.line:
                emit(f"  {event.line}")
        case _:
            emit(event_text(event))


def _show_metric(metric: Metric, view: RunView) -> None:
    step, values = f"  step {metric.step:>4}/{metric.total_steps}", metric.values
    if "loss" not in values:
        emit(f"{step}  held-out loss {_loss(values.get('eval_loss'))}")
    elif metric.step % _STEPS_BETWEEN_LINES == 0 or metric.step in (1, metric.total_steps):
        eta = f", {rough_duration(view.eta_seconds)} left" if view.eta_seconds else ""
        emit(
            f"{step}  loss {values['loss']:.3f}  "
            f"{values['tokens_per_second']:,.0f} tok/s  {values['memory_gib']:.1f} GiB{eta}"
        )


def show_report(report: Report) -> None:
    emit(
        f"\n{report.steps:,} steps in {duration(report.train_seconds)}, "
        f"{report.tokens_per_second:,.0f} tok/s, peak {report.peak_gib:.2f} GiB"
    )
    found = verdict(report)
    for words in (found.headline, *found.facts, *found.warnings):
        emit(words)
    if report.forgetting:
        emit(in_words(report.forgetting[0]))
    names = [measure_name(measure).lower() for measure in report.measures] or ["exact answers"]
    table = _table("", *names, "held-out loss", "perplexity", "general loss")
    for at, scores in enumerate(report.scores):
        shares = [measure.means[at] for measure in report.measures] or [scores.exact_match]
        answers = ("-" if share is None else f"{share:.1%}" for share in shares)
        loss = scores.heldout_loss
        shown = "-" if loss is None else f"{perplexity(loss):.4g}"
        table.add_row(scores.name, *answers, _loss(loss), shown, _loss(scores.general_loss))
    _emit_table(table)


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def show_row(row: ComparedRow) -> None:
    """All answers side by side under the prompt, the expected one first."""
    emit("\n" + row.prompt)
    names = [name.replace("_", " ") for name, _ in zip(PANES, row.answers, strict=False)]
    texts = [answer.text for answer in row.answers]
    if row.expected:
        names, texts = ["expected", *names], [row.expected, *texts]
    table = _table(*names, num_left=len(names))
    if sys.stderr.isatty():
        table.width = min(Console(file=sys.stderr).width, _MAX_ANSWER_COLUMNS)
    table.add_row(*texts)
    _emit_table(table)


def show_comparison(done: Done) -> None:
    """What the answers are worth, and whether all came from one base."""
    if tally := done.tally:
        worth = (
            f"{name.replace('_', ' ')} {figure}"
            for name, figure in zip(PANES, tally.figures, strict=False)
        )
        emit(f"\n{tally.what}: {', '.join(worth)}")
    if not done.same_base:
        emit("The answers did not come from the same base: compare again.")


def show_runs(
    runs: Sequence[tuple[RunFolder, RunView]], queue_positions: Mapping[str, QueuePosition]
) -> None:
    if not runs:
        emit("There are no runs yet.")
        return
    table = _table("run", "status", "step", "started", "name", "", num_left=6)
    for run, view in runs:
        started = f"{duration(time.time() - view.started_at)} ago" if view.started_at else "-"
        stalled, queued = view.stalled_for(time.time()), queue_positions.get(run.id)
        note = stalled
        if queued:
            starts_in = rough_duration(queued.starts_in_seconds)
            note = f"{queued.num_before} before it, starts in about {starts_in}"
        status = "stalled" if stalled else view.status
        table.add_row(run.id, status, f"{view.step}/{view.total_steps}", started, run.name(), note)
    table.columns[0].no_wrap = True  # the id is copied from here
    _emit_table(table)


def show_deployment(deployment: Deployment, was_done: bool) -> None:
    """What would be done; after it was done, when each change had its line, only where the Space is."""
    if not deployment.changes:
        emit(f"Nothing to do: {deployment.repo} is as asked.")
    elif not was_done:
        emit(f"To be done for {deployment.repo}:")
        for change in deployment.changes:
            emit(f"  {change}")
    for note in deployment.notes:
        emit(f"- {note}")
    emit(deployment.url if was_done or not deployment.changes else "Add --yes to do it.")


def show_doctor(
    hardware: Hardware,
    versions: dict[str, str],
    problems: Sequence[str],
    places: Mapping[str, str],
) -> None:
    emit(
        f"{hardware.name}: {hardware.free_gib:.1f} of {hardware.memory_gib:.1f} GiB free; "
        f"disk {hardware.disk_free_gib:.0f} GiB free"
    )
    emit(", ".join(f"{name} {version}" for name, version in versions.items()))
    for place, words in places.items():
        emit(f"{place}: {words}")
    for problem in problems:
        emit(f"- {problem}")


def library_versions() -> dict[str, str]:
    """Installed versions of what training rests on; 'missing' if one is not there."""

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "missing"

    return {name: version(name) for name in _LIBRARIES}


def show_quality(measured: Sequence[Quality]) -> None:
    """One table per measurement, one row per state of the base."""
    for quality in measured:
        emit(f"{quality.base_id}, measured on {quality.text}:")
        table = _table("base", "perplexity", "KL", "same next word")
        states = {"start": quality.init, "healed": f"{quality.init}, healed"}
        for point in quality.points:
            bits = 16 if point.name == "16 bit" else quality.bits
            name = " ".join(filter(None, (f"{bits} bit", states.get(point.name))))
            table.add_row(name, f"{point.ppl:.2f}", f"{point.kl:.4f}", f"{point.top1:.1%}")
        _emit_table(table, 2)
