"""The page "Run" as pieces of HTML, by name; each is sent only when it differs from what a tab shows."""

import shutil
import time
from collections.abc import Sequence

from qlora_space.app.ui.live import LiveRun
from qlora_space.app.ui.render import changes as render_changes
from qlora_space.app.ui.render import low_bit as render_low_bit
from qlora_space.app.ui.render import run as render_run
from qlora_space.app.ui.render import samples as render_samples
from qlora_space.app.ui.render.html import notice
from qlora_space.core.wording import without_folders
from qlora_space.runs import advice, ended_early


def pieces_of(live: LiveRun, options: Sequence[str], step: int) -> dict[str, str]:
    """`step` is that of the answers that are shown."""
    view, name = live.view, live.run.name()
    words = advice(view, live.plan)
    return {
        "head": render_run.head(name, live.plan, view, live.place),
        "outcome": _outcome(live) + (render_low_bit.gate(view.gate) if view.gate else ""),
        "fork": _fork(live),
        "charts": render_run.charts(view, options),
        "advice": notice("info", words) if words else "",
        "overlay": _overlay(live, name, options),
        "timeline": render_samples.timeline(view, step),
        "samples": render_samples.samples(view, step),
        "log": render_run.log(live.events),
    }


def _outcome(live: LiveRun) -> str:
    view = live.view
    if stalled := view.stalled_for(time.time()):
        return render_run.stalled(stalled)
    if live.place and live.place.stalled and view.status == "queued":
        hint = "Stop it, and this one moves up."
        return notice("warning", f"“{live.place.stalled}” has the machine and is stalled.", hint)
    if view.failure is not None:
        return render_run.failure(view.failure)
    if view.phase is not None and view.phase.name == "disk" and not view.is_over:
        return _full_disk(live)
    if view.warning:
        return notice("warning", without_folders(view.warning))
    if view.status == "cancelled":
        return notice("info", "This run was stopped and its adapter discarded.")
    if view.status == "paused":
        hint = "Resume goes on as if nothing had happened."
        return notice("info", f"Paused at step {view.step:,}; everything is saved.", hint)
    why = ended_early(view, live.plan)
    report = live.run.report() if view.status == "finished" else None
    return (notice("info", why) if why else "") + (render_run.result(report) if report else "")


def _full_disk(live: LiveRun) -> str:
    """The adapter is smaller than a checkpoint, so this much is enough."""
    needed = live.view.checkpoints[-1].num_bytes if live.view.checkpoints else 0
    missing = max(0, needed - shutil.disk_usage(live.run.path).free)
    hint = f"Free {missing:,} bytes or more: it tries again every few seconds, and nothing is lost."
    return notice("warning", "The disk is full, so the adapter is not saved yet.", hint)


def _fork(live: LiveRun) -> str:
    """What differs from the run that this one was made from, while that one is still here."""
    if live.origin is None or not live.origin.path.exists():
        return ""
    return render_changes.fork(live.origin.name(), live.origin.plan(), live.plan)


def _overlay(live: LiveRun, name: str, options: Sequence[str]) -> str:
    me = render_changes.Beside(name, live.plan, live.view)
    return render_changes.overlay([me, *live.beside], options) if live.beside else ""
