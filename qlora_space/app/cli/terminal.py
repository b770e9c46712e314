"""What the command line shows: plain text for people, on stderr."""

import importlib.metadata
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence

from qlora_space.core.comparison import Done
from qlora_space.core.events import Event
from qlora_space.core.facts import Hardware
from qlora_space.core.inspection import Inspection
from qlora_space.plan import Plan
from qlora_space.runs import Quality, QueuePosition, Report, RunFolder, RunView

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


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def show_inspection(inspection: Inspection) -> None:
    lengths = inspection.lengths
    say(
        f"Data   {inspection.dataset.id}: {inspection.num_rows:,} rows, "
        f"read as {inspection.format.value} ({inspection.reason})"
    )
    say(
        f"       {lengths.mean:.0f} tokens a row on average, the longest {lengths.max:,}; "
        f"{lengths.trained_fraction:.0%} of tokens are trained on"
    )
    for problem in inspection.problems:
        say(f"       {problem.severity}: {problem.message} {problem.fix}")
    if inspection.samples:
        say("       a row as the model sees it, what it learns in [brackets]:")
        say(textwrap.indent(_marked(inspection), "         "))


def _marked(inspection: Inspection) -> str:
    pieces, inside = [], False
    for token in inspection.samples[0].tokens[:200]:
        if token.trained != inside:
            pieces.append("[" if token.trained else "]")
            inside = token.trained
        pieces.append(token.text)
    return "".join(pieces) + ("]" if inside else "")


def show_plan(plan: Plan) -> None:
    estimate = plan.estimate
    say(
        f"Base   {plan.base.id}: {plan.base.parameters / 1e6:,.1f} M parameters "
        f"at {plan.mean_width:g} bits, on {plan.device_label}"
    )
    say(
        f"Plan   {estimate.steps:,} steps, about {duration(estimate.seconds)}, {estimate.peak_gib:.1f} GiB"
    )
    for choice in plan.choices:
        say(f"       {choice.name} = {choice.value}  ({choice.why})")


def show_event(event: Event, view: RunView) -> None:
    match event.kind:
        case "started":
            say(f"Started on {event.place}.")
        case "metric" if "loss" in event.values:
            if event.step % 10 == 0 or event.step in (1, event.total_steps):
                eta = f", {duration(view.eta_seconds)} left" if view.eta_seconds else ""
                say(
                    f"  step {event.step:>4}/{event.total_steps}  loss {event.values['loss']:.3f}  "
                    f"{event.values['tokens_per_second']:,.0f} tok/s  {event.values['memory_gib']:.1f} GiB{eta}"
                )
        case "metric":
            say(
                f"  step {event.step:>4}/{event.total_steps}  held-out loss {event.values['eval_loss']:.3f}"
            )
        case "note":
            say(event.text)
        case "phase" if event.done == 0 and event.name not in ("train", "evaluate"):
            say(
                {
                    "queue": f"Waiting for the machine, {event.total} before it",
                    "disk": "Waiting for space on the disk",
                    "data": "Preparing the data",
                    "model": "Loading the base",
                    "save": "Saving the adapter",
                    "report": "Measuring base and adapted model",
                    "publish": "Publishing",
                }[event.name]
                + " ..."
            )
        case "failed":
            say(f"Failed: {event.cause} {event.hint}" + (f"\n  {event.line}" if event.line else ""))
        case "cancelled":
            say("Stopped; nothing was kept.")
        case "rollback":
            say(f"  step {event.step:,}: {event.why}; going on from step {event.to_step:,}")
        case "paused":
            say(f"Paused at step {event.step:,}; everything is saved.")
        case "finished":
            say("Done." if not event.stopped_early else "Stopped; the adapter is kept.")


def show_report(report: Report) -> None:
    say(
        f"\n{report.steps:,} steps in {duration(report.train_seconds)}, "
        f"{report.tokens_per_second:,.0f} tok/s, peak {report.peak_gib:.2f} GiB"
    )
    say(f"{'':<10}{'exact answers':>15}{'held-out loss':>15}{'general loss':>15}")
    for scores in report.scores:
        cells = (
            f"{scores.exact_match:.1%}" if scores.exact_match is not None else "-",
            _loss(scores.heldout_loss),
            _loss(scores.general_loss),
        )
        say(f"{scores.name:<10}" + "".join(f"{cell:>15}" for cell in cells))


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def show_pair(prompt: str, done: Done) -> None:
    """Two columns under the question."""
    width = max(24, (min(shutil.get_terminal_size().columns, 120) - 3) // 2)
    say("\n" + textwrap.fill(prompt, 2 * width + 3))
    columns = [["base", *_wrap(done.base, width)], ["adapted", *_wrap(done.adapted, width)]]
    for i in range(max(map(len, columns))):
        left, right = (column[i] if i < len(column) else "" for column in columns)
        say(f"{left:<{width}} | {right}")


def _wrap(text: str, width: int) -> list[str]:
    return [
        part for line in text.splitlines() or [""] for part in (textwrap.wrap(line, width) or [""])
    ]


def show_runs(
    pairs: Sequence[tuple[RunFolder, RunView]], places: Mapping[str, QueuePosition]
) -> None:
    if not pairs:
        say("There are no runs yet.")
    for run, view in pairs:
        age = duration(time.time() - view.started_at) if view.started_at else "-"
        stalled, place = view.stalled_for(time.time()), places.get(run.id)
        more = f"  ({stalled})" if stalled else ""
        if place:
            more = f"  ({place.num_before} before it, starts in about {duration(place.starts_in_seconds)})"
        status = "stalled" if stalled else view.status
        say(
            f"{run.id}  {status:<10} step {view.step}/{view.total_steps}  {age} ago  {run.name()}{more}"
        )


def show_doctor(hardware: Hardware, versions: dict[str, str], problems: Sequence[str]) -> None:
    say(
        f"{hardware.name}: {hardware.free_gib:.1f} of {hardware.memory_gib:.1f} GiB free; "
        f"disk {hardware.disk_free_gib:.0f} GiB free"
    )
    say(", ".join(f"{name} {version}" for name, version in versions.items()))
    for problem in problems:
        say(f"- {problem}")


def library_versions() -> dict[str, str]:
    """Installed versions of what the job rests on; 'missing' if one is not there."""

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "missing"

    return {name: version(name) for name in _LIBRARIES}


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_quality(found: Sequence[Quality]) -> None:
    """One line per state of the base."""
    for quality in found:
        say(f"{quality.base_id}, measured on {quality.text}:")
        for point in quality.points:
            bits = 16 if point.name == "16 bit" else quality.bits
            state = {"start": quality.init, "healed": f"{quality.init}, healed"}.get(point.name, "")
            say(
                f"  {bits:>2} bit {state:<14} perplexity {point.ppl:8.2f}   KL {point.kl:.4f}   "
                f"same next word {point.top1:.1%}"
            )
