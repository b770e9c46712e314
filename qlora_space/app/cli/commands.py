"""The commands of the command line: each prints for people and returns the object for --json."""

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qlora_space.app.actions import Actions
from qlora_space.app.cli import terminal
from qlora_space.app.cli.flags import given
from qlora_space.app.exporting import new_folder
from qlora_space.core.confinement import missing_here
from qlora_space.core.errors import (
    BackendError,
    DatasetError,
    QloraSpaceError,
    RequestError,
    RunError,
)
from qlora_space.core.events import Paused
from qlora_space.core.machine import has_compiler, why_no_gpu
from qlora_space.core.request import TrainingRequest, parse_request
from qlora_space.core.wording import price
from qlora_space.hub.deploy import SpaceSettings
from qlora_space.hub.jobs import job_flavors, pinned_code
from qlora_space.runs import (
    EventLog,
    RunFolder,
    advice,
    ended_early,
    fold,
    read_events,
    step_to_resume,
)

_POLL_SECONDS = 0.2
_PLACE_FIELDS = {"place", "flavor", "max_usd"}
_GRADIO = "gradio[oauth]>=6.31,<7"  # as the extra [app] of pyproject.toml asks for


class RunFailed(Exception):
    """The run was started and failed: its result is still printed with --json."""

    def __init__(self, result: dict[str, Any], status: int) -> None:
        super().__init__(status)
        self.result, self.status = result, status


def request_of(actions: Actions, options: argparse.Namespace) -> TrainingRequest:
    """The request that the flags make up, on top of that of --like. Raises QloraSpaceError."""
    flags = given(options, TrainingRequest)
    like = getattr(options, "like", None)
    if not like:
        return parse_request(flags)
    found = actions.published_run(like)
    for sentence in found.left_out:
        terminal.emit(sentence)
    before = found.request.model_dump(mode="json", exclude_defaults=True)
    for source in ("dataset", "base"):
        if source in flags:  # what is said of another one
            before = {n: v for n, v in before.items() if not n.startswith(f"{source}_")}
    return parse_request(before | flags)


def app(actions: Actions, options: argparse.Namespace) -> None:
    """Serve the page. Raises BackendError if the extra [app] is not installed."""
    if find_spec("gradio") is None:
        raise BackendError(
            "The page needs gradio, which is not installed.",
            f"Install it with: pip install '{_GRADIO}'.",
        )
    from qlora_space.app.ui import serve

    actions.warm_up()
    serve(actions)


def inspect(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    inspection = actions.inspect(request_of(actions, options))
    if unknown := inspection.unknown_format:
        raise DatasetError(unknown.message, unknown.fix)
    terminal.show_inspection(inspection)
    return inspection.model_dump(mode="json")


def plan(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    plan = actions.plan(request_of(actions, options))
    terminal.show_plan(plan)
    estimate = plan.estimate
    return {
        "fits": estimate.fits,
        "peak_gib": estimate.peak_gib,
        "least_gib": estimate.least_gib,
        "seconds": estimate.seconds,
        "cost_usd": plan.offer.usd if plan.offer else estimate.cost_usd,
        "places": [offer.model_dump(mode="json") for offer in plan.places],
        "choices": {c.name: {"value": c.value, "why": c.why} for c in plan.choices},
        "plan": plan.model_dump(mode="json"),
    }


def train(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    offset = 0
    if options.resume:
        run = _resumable(actions, options)
        offset = run.events_file.stat().st_size
        actions.resume(run, _another_place(options))
    else:
        request = request_of(actions, options)
        terminal.show_inspection(actions.inspect(request))
        if options.only_make:
            return _only_made(actions, request)
        run = actions.start(request)
    terminal.show_plan(run.plan())
    terminal.emit(f"\nRun {run.id}. Ctrl-C stops it and keeps the adapter.\n")
    _follow(actions, run, offset)
    view = actions.view(run)
    if report := run.report():
        terminal.show_report(report)
    for remark in filter(None, (ended_early(view, run.plan()), advice(view, run.plan()))):
        terminal.emit(remark)
    result = {
        "run_id": run.id,
        "status": view.status,
        "adapter": str(run.adapter_folder) if run.has_adapter else None,
        "report": report.model_dump(mode="json") if report else None,
    }
    if view.failure is not None:  # only unforeseen failures, bugs, quote a line of the log
        raise RunFailed(result, 1 if view.failure.line else 2)
    return result


def _only_made(actions: Actions, request: TrainingRequest) -> dict[str, Any]:
    """A run that is paused before its first step, for a launcher, or to be resumed."""
    run = actions.make(request)
    with contextlib.closing(EventLog(run.events_file)) as log:
        log.append(Paused(step=0, why="signal"))
    terminal.show_plan(run.plan())
    worker = shlex.join(["-m", "qlora_space.places.worker", "train", str(run.path)])
    command = f"torchrun --nproc-per-node {run.plan().num_processes} --max-restarts 3 {worker}"
    terminal.emit(f"\nRun {run.id} is made and waits. Start it with:\n\n{command}\n")
    return {"run_id": run.id, "command": command}


def _resumable(actions: Actions, options: argparse.Namespace) -> RunFolder:
    changes = given(options, TrainingRequest).keys() - _PLACE_FIELDS
    if changed := next(iter(changes), None):
        raise RequestError(
            f"{changed} cannot be changed while resuming: the run goes on exactly as planned.",
            "Leave it out, or start a new run.",
        )
    return find_run(actions, options.resume)


def _another_place(options: argparse.Namespace) -> TrainingRequest | None:
    """None: where it was before. A machine or a cap that is named means a job."""
    asked = given(options, TrainingRequest)
    if not asked:
        return None
    return parse_request({"place": "job"} | asked)


def _follow(actions: Actions, run: RunFolder, offset: int) -> None:
    """Print events from byte `offset` on as they arrive, until the run is over. The first Ctrl-C stops the run."""
    view, is_stopping = fold([]), False
    while not view.is_over:
        try:
            events, offset = read_events(run.events_file, offset)
            view = fold(events, view)
            for event in events:
                terminal.show_event(event, view)
            if not events:
                actions.view(run)
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            if is_stopping:
                raise
            is_stopping = True
            terminal.emit(
                "Stopping; the adapter is kept. Ctrl-C again returns to the shell at once."
            )
            actions.stop(run, keep=True)


def runs(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    if options.action == "list":
        found = actions.runs()
        terminal.show_runs(found, actions.queue_positions())
        return {"runs": [_summary(actions, run) for run, _ in found]}
    is_on_hub = options.action == "fetch"
    run = actions.fetch(options.run or "") if is_on_hub else find_run(actions, options.run)
    if options.action == "stop":
        actions.stop(run, keep=not options.discard)
    elif options.action == "resume":
        actions.resume(run)
    elif options.action == "rename":
        actions.rename(run, options.name or "")
    summary = _summary(actions, run)
    if options.action == "delete":
        actions.delete(run)
    terminal.emit(json.dumps(summary, indent=1))
    return {"runs": [summary]}


def _summary(actions: Actions, run: RunFolder) -> dict[str, Any]:
    view, queued = actions.view(run), actions.queue_positions().get(run.id)
    return {
        "run_id": run.id,
        "name": run.name(),
        "status": "stalled" if view.stalled_for(time.time()) else view.status,
        "resume_step": step_to_resume(run, view),
        "queue": dataclasses.asdict(queued) if queued else None,
        "step": view.step,
        "total_steps": view.total_steps,
        "loss": view.latest("loss"),
        "eval_loss": view.latest("eval_loss"),
        "has_adapter": run.has_adapter,
    }


def find_run(actions: Actions, run_id: str | None) -> RunFolder:
    if run_id == "latest" and (runs := actions.runs()):
        return runs[0][0]
    if not run_id:
        raise RunError("No run was named.", "Give its id, or 'latest'.")
    return actions.run(run_id)


def quantize(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    folder: Path | None = options.to
    if (folder is None) != (options.written_as is None):
        raise RequestError("A format is written into a new folder.", "Give --format and --to.")
    if folder:
        new_folder(folder)
    found = list(actions.quantize(request_of(actions, options), folder))
    terminal.show_quality(found)
    return {"rows": [row for quality in found for row in quality.rows()], "text": found[0].text}


def deploy(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    settings = SpaceSettings(
        hardware=options.hardware,
        private=options.private,
        sleep_seconds=options.sleep_seconds,
        bucket=options.bucket,
        variables=dict(_name_and_value(text) for text in options.variable),
        secrets={name: _secret(name) for name in options.secret},
    )
    if options.yes:
        done = actions.deploy(options.to, settings, terminal.emit)
    else:
        done = actions.plan_deployment(options.to, settings)
    terminal.show_deployment(done, was_done=options.yes)
    return {"done": options.yes, **dataclasses.asdict(done)}


def _name_and_value(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise RequestError(f"--variable is {text[:60]!r}, without a value.", "Write NAME=VALUE.")
    return name, value


def _secret(name: str) -> str:
    """From the environment: arguments of a process can be read by others."""
    if value := os.environ.get(name):
        return value
    raise RequestError(
        f"The secret {name[:60]} has no value.", "Set the environment variable of that name."
    )


def doctor(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    hardware, problems = actions.hardware(), []
    if hardware.device == "cpu":
        problems.append(why_no_gpu())
    if hardware.disk_free_gib < 5:
        problems.append(f"Only {hardware.disk_free_gib:.1f} GiB of disk are free.")
    if actions.token is None:
        problems.append(
            "You are not signed in to the Hub: publishing and gated bases need it (hf auth login)."
        )
    problems.extend(missing_here())
    versions, places = terminal.library_versions(), where_to_run(actions)
    terminal.show_doctor(hardware, versions, problems, places)
    return {
        "gpu": hardware.model_dump(),
        "versions": versions,
        "places": places,
        "problems": problems,
    }


def where_to_run(actions: Actions) -> dict[str, str]:
    """Each place, and whether it can be used from here."""
    hardware = actions.hardware()
    here = f"{hardware.name}, {hardware.free_gib:.1f} GiB free"
    if hardware.device == "cuda" and not has_compiler():
        here += "; no C compiler, so Triton's kernels cannot be built and steps are plain"
    return {"here": here, "job": _jobs_from_here(actions)}


def _jobs_from_here(actions: Actions) -> str:
    if actions.token is None:
        return "needs a sign-in (hf auth login)"
    try:
        machines = job_flavors(actions.token)
        code = pinned_code(actions.settings.job_code, actions.token)
    except QloraSpaceError as error:
        return f"cannot be started from here: {error}"
    prices = sorted(machine.hardware.price_per_hour_usd for machine in machines)
    return (
        f"{len(machines)} machines, {price(prices[0])} to {price(prices[-1])} an hour; a job runs "
        f"{code[0]} at {code[1][:8]}"
    )
