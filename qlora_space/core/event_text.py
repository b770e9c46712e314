"""Events in words: one text for every phase and every kind of event, shown by the page and the terminal alike."""

from typing import Literal, assert_never

from qlora_space.core.events import Cancelled, Event, Failed, Finished, Metric, Paused, Phase, Slice
from qlora_space.core.wording import counted, duration, num_bytes, rate, significant, small

Level = Literal["info", "warning", "error"]
PHASES = {
    "queue": "Waiting for the runs before it",
    "job": "Waiting for a machine of HF Jobs, and for what is installed on it",
    "data": "Reading and tokenizing the data",
    "model": "Loading the base",
    "heal": "Healing the base",
    "evaluate": "Evaluating on held-out rows",
    "train": "Training",
    "save": "Saving the adapter",
    "disk": "Waiting for free disk space",
    "report": "Evaluating base and adapted model",
    "publish": "Publishing",
}


def phase_text(phase: Phase) -> str:
    """A base that is loaded layer by layer is being quantized here; a queue names the runs ahead."""
    if phase.name == "model" and phase.total > 1:
        return "Quantizing the base"
    if phase.name == "queue" and phase.total:
        return f"Waiting for {counted(phase.total, 'run')} before it"
    return PHASES[phase.name]


def event_text(event: Event) -> str:
    """One sentence; '' for a heartbeat, which reports only that the process lives."""
    match event.kind:
        case "started":
            after = f", continuing after step {event.resume_step:,}" if event.resume_step else ""
            return f"Started on {event.place}{after}."
        case "phase":
            return f"{phase_text(event)}."
        case "metric":
            return _metric_text(event)
        case "sample":
            return f"Step {event.step:,}: sampled {event.prompt!r}: {event.text!r}."
        case "checkpoint":
            size, seconds = num_bytes(event.num_bytes), duration(event.seconds)
            return f"Step {event.step:,}: saved {size} in {seconds}."
        case "rollback":
            return (
                f"Step {event.step:,}: {event.why}. "
                f"Continuing from step {event.to_step:,} with half the learning rate."
            )
        case "heartbeat":
            return ""
        case "slice":
            return slice_text(event)
        case "gate":
            return event.why
        case "note":
            return event.text
        case "finished" | "failed" | "cancelled" | "paused":
            return _end_text(event)
    assert_never(event.kind)


def slice_name(event: Slice) -> str:
    """'Slice 3 of about 8'."""
    of = f" of about {event.number + event.to_go - 1}" if event.to_go else ""
    return f"Slice {event.number}{of}"


def slice_text(event: Slice) -> str:
    """Which slice it is, and what it does."""
    name = slice_name(event)
    match event.state:
        case "waits_for_tab":
            return f"{name} begins when the page of this run is open."
        case "waits_for_gpu":
            return f"{name} waits for a GPU, for {event.seconds} s."
        case "runs":
            return f"{name} runs, for at most {event.seconds} s."
    assert_never(event.state)


def _metric_text(metric: Metric) -> str:
    if "eval_loss" in metric.values:
        return f"Step {metric.step:,}: held-out loss {significant(metric.values['eval_loss'])}."
    values = metric.values
    parts = [
        f"{name} {show(values[key])}".strip()
        for key, name, show in (
            ("loss", "loss", significant),
            ("learning_rate", "learning rate", small),
            ("tokens_per_second", "", rate),
        )
        if key in values
    ]
    figures = f": {', '.join(parts)}" if parts else ""
    return f"Step {metric.step:,} of {metric.total_steps:,}{figures}."


def _end_text(end: Finished | Failed | Cancelled | Paused) -> str:
    match end.kind:
        case "finished":
            return "Stopped; the adapter was kept." if end.stopped_by_hand else "Done."
        case "failed":
            return end.cause
        case "cancelled":
            return f"Stopped at step {end.step:,}; nothing was kept."
        case "paused":
            return " ".join(
                filter(None, (f"Paused at step {end.step:,}; everything is saved.", end.goes_on))
            )


def event_level(event: Event) -> Level:
    """How much a person should care."""
    match event.kind:
        case "note":
            return event.level
        case "gate":
            return "error" if event.is_broken else "info"
        case "rollback":
            return "warning"
        case "failed":
            return "error"
    return "info"
