"""What the page of a run shows, as pieces of HTML by the id of the element that holds them.

Pieces say what is in a `Snapshot` and, where they depend on it, in a tab's `ViewOptions`: tabs with the same options
share them.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from qlora_space.app.ui.render import changes as render_changes
from qlora_space.app.ui.render import low_bit as render_low_bit
from qlora_space.app.ui.render import publish as render_publish
from qlora_space.app.ui.render import run as render_run
from qlora_space.app.ui.render import samples as render_samples
from qlora_space.app.ui.render.changes import MAX_COMPARED, ComparedRun
from qlora_space.app.ui.render.charts import Steps
from qlora_space.app.ui.render.html import notice
from qlora_space.app.ui.render.places import job_line
from qlora_space.core.errors import RequestError
from qlora_space.core.machine import is_shared
from qlora_space.core.wording import without_folders
from qlora_space.plan import Plan
from qlora_space.runs import QueuePosition, RunFolder, RunView, advice, ended_early, slowdown
from qlora_space.runs.pushing import is_being_pushed

_STEPS = re.compile(r"\s*(\d{1,9})\s*(?:-|–|to)\s*(\d{1,9})\s*")
_STEP = re.compile(r"\d{1,9}")
_RUN_IDS = re.compile(rf"[0-9a-f]{{32}}(,[0-9a-f]{{32}}){{0,{MAX_COMPARED - 1}}}")


@dataclass(frozen=True)
class ViewOptions:
    """What a tab chose to see of a run. `at` is the step of the sample answers; None: the newest."""

    is_smooth: bool = True
    is_log: bool = False
    steps: Steps | None = None
    at: int | None = None
    others: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [name for name, on in (("smooth", self.is_smooth), ("log", self.is_log)) if on]


def parse_view_options(query: Mapping[str, str]) -> ViewOptions:
    """From the query of an address: smooth=0|1, log=0|1, steps=FIRST-LAST, at=STEP, others=RUN_ID,RUN_ID.
    Raises RequestError."""
    others = _checked(query, "others", _RUN_IDS)
    at = _checked(query, "at", _STEP)
    return ViewOptions(
        is_smooth=_checked(query, "smooth", re.compile("[01]")) != "0",
        is_log=_checked(query, "log", re.compile("[01]")) == "1",
        steps=parse_steps(_checked(query, "steps", _STEPS)),
        at=int(at) if at else None,
        others=tuple(others.split(",")) if others else (),
    )


def _checked(query: Mapping[str, str], name: str, form: re.Pattern[str]) -> str:
    value = query.get(name, "")
    if value and not form.fullmatch(value):
        raise RequestError(f"{name} is {value[:40]!r}.", "Reload the page.")
    return value


def parse_steps(written: str) -> Steps | None:
    """'100-200' as (100, 200); None, for all, of anything else."""
    match = _STEPS.fullmatch(written)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    return (first, last) if first < last else None


@dataclass(frozen=True)
class Origin:
    """The run that another one was made from."""

    name: str
    id: str
    plan: Plan

    @classmethod
    def of(cls, run: RunFolder) -> "Origin":
        return cls(run.name(), run.id, run.plan())


@dataclass(frozen=True)
class Snapshot:
    """A run at Unix time `now`, in seconds. `origin` is None also when that run was deleted."""

    run: RunFolder
    name: str
    plan: Plan
    view: RunView
    now: float
    queue_position: QueuePosition | None = None
    resume_step: int | None = None
    origin: Origin | None = None

    @property
    def state(self) -> str:
        """Changes when other buttons make sense."""
        return state_of(self.run, self.view, self.resume_step)


def state_of(run: RunFolder, view: RunView, resume_step: int | None) -> str:
    """Of a run, as far as its buttons depend on it."""
    return f"{view.status} {view.attempts} {resume_step} {run.stop_request()}"


def status_pieces(seen: Snapshot) -> dict[str, str]:
    """The same for every tab, and cheap: drawn at every event."""
    remark = advice(seen.view, seen.plan)
    plan = seen.plan
    slow = slowdown(seen.view, plan, lambda: is_shared(plan.hardware.device, plan.num_processes))
    gate = seen.view.gate
    return {
        "run-head": render_run.head(seen.name, seen.plan, seen.view, seen.queue_position)
        + job_line(seen.run.job(), seen.now),
        "run-outcome": _outcome(seen) + (render_low_bit.gate(gate) if gate else ""),
        "run-fork": _fork(seen),
        "advice": "".join(notice("info", words) for words in (slow, remark) if words),
    }


def shared_pieces(seen: Snapshot) -> dict[str, str]:
    """What whoever has a link sees instead: no message, which may quote a row or name a file, and no other run."""
    plan, view = seen.plan, seen.view
    report = seen.run.report() if view.status == "finished" else None
    outcome = render_run.result(report) if report else _ended_for_others(view)
    gate = render_low_bit.gate(view.gate) if view.gate else ""
    head = render_run.head(seen.name, plan, view, names_dataset=plan.dataset.is_public)
    return {"run-head": head, "run-outcome": outcome + gate}


def _ended_for_others(view: RunView) -> str:
    words = {"failed": "This run failed.", "cancelled": "This run was stopped."}
    return notice("info", words[view.status]) if view.status in words else ""


def charts(seen: Snapshot, options: ViewOptions) -> str:
    return render_run.charts(seen.view, options.names, options.steps)


def overlay(seen: Snapshot, others: Sequence[ComparedRun], options: ViewOptions) -> str:
    """Other runs laid over this one."""
    me = ComparedRun(seen.name, seen.plan, seen.view)
    return render_changes.overlay([me, *others], options.names) if others else ""


def timeline(seen: Snapshot, at: int) -> str:
    return render_samples.timeline(seen.view, at)


def samples(seen: Snapshot, at: int) -> str:
    return render_samples.samples(seen.view, at)


def _outcome(seen: Snapshot) -> str:
    at = seen.run.delete_at()
    soon = _deleted_soon(at) if at is not None else ""
    return soon + _publishing(seen) + _outcome_of_run(seen)


def _publishing(seen: Snapshot) -> str:
    """Where the adapter was published, and what is still to be sent, once the run is over."""
    if not seen.view.is_over:
        return ""
    push = seen.run.unsent_push()
    return render_publish.unsent(
        push, seen.now, is_being_pushed(seen.run)
    ) + render_publish.published_line(seen.run)


def _deleted_soon(at: float) -> str:
    when = datetime.fromtimestamp(at, UTC)
    return notice(
        "warning",
        f"This adapter was published nowhere, and this Space deletes it on {when:%d %B %Y}.",
        "Publish it to keep it.",
    )


def _outcome_of_run(seen: Snapshot) -> str:
    view = seen.view
    if stalled := view.stalled_for(seen.now):
        return render_run.stalled(stalled)
    queued = seen.queue_position
    if queued and queued.stalled and view.status == "queued":
        hint = "Stop it, and this one moves up."
        return notice("warning", f"“{queued.stalled}” has the machine and is stalled.", hint)
    if view.failure is not None:
        return render_run.failure(view.failure)
    if view.phase is not None and view.phase.name == "disk" and not view.is_over:
        return _full_disk(seen)
    if view.warning:
        return notice("warning", without_folders(view.warning))
    if view.status == "cancelled":
        return notice("info", "This run was stopped and its adapter discarded.")
    if view.status == "paused":
        hint = (view.pause and view.pause.goes_on) or "Resume goes on as if nothing had happened."
        return notice("info", f"Paused at step {view.step:,}; everything is saved.", hint)
    if view.slice is not None:
        return render_run.slices(view)
    why = ended_early(view, seen.plan)
    report = seen.run.report() if view.status == "finished" else None
    return (notice("info", why) if why else "") + (render_run.result(report) if report else "")


def _full_disk(seen: Snapshot) -> str:
    """The adapter is smaller than a checkpoint, so a checkpoint's size is enough."""
    needed = seen.view.checkpoints[-1].num_bytes if seen.view.checkpoints else 0
    missing = max(0, needed - shutil.disk_usage(seen.run.path).free)
    hint = f"Free {missing:,} bytes or more: it tries again every few seconds, and nothing is lost."
    return notice("warning", "The disk is full, so the adapter is not saved yet.", hint)


def _fork(seen: Snapshot) -> str:
    """What differs from the run that this one was made from."""
    if seen.origin is None:
        return ""
    return render_changes.fork(seen.origin.name, seen.origin.id, seen.origin.plan, seen.plan)
