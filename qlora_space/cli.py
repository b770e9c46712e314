"""The same job without a browser: `python -m qlora_space VERB`.

With --json one object goes to stdout; everything for people goes to stderr. Exit status: 0 done, 2 the user
must change something (one line says what), 1 a bug of ours.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_space import __version__, terminal
from qlora_space.actions import Actions
from qlora_space.comparison import Done, Sampling
from qlora_space.errors import DatasetError, QloraSpaceError, RequestError, RunError
from qlora_space.flags import add_fields, given
from qlora_space.machine import why_no_gpu
from qlora_space.parsing import parse_values
from qlora_space.request import TrainingRequest, parse_request
from qlora_space.runs import RunFolder, advice, ended_early, fold, list_runs, read_events
from qlora_space.settings import load_settings

_POLL_SECONDS = 0.2
_RUN_ACTIONS = ("list", "show", "stop", "resume", "rename", "delete", "fetch")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        with contextlib.closing(Actions(load_settings())) as actions:
            result = options.verb(actions, options)
    except QloraSpaceError as error:
        terminal.say(str(error))
        return 2
    except _RunFailed as failed:
        result, status = failed.result, failed.status
    except KeyboardInterrupt:
        return 130
    else:
        status = 0
    if options.json and result is not None:
        sys.stdout.write(json.dumps(result) + "\n")
    return status


class _RunFailed(Exception):
    """The run was started and did not succeed: its result is still printed."""

    def __init__(self, result: dict[str, Any], status: int) -> None:
        super().__init__(status)
        self.result, self.status = result, status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qlora-space", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, does: Any, text: str) -> argparse.ArgumentParser:
        child = verbs.add_parser(name, help=text, description=text)
        child.set_defaults(verb=does)
        child.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        return child

    verb("app", _app, "serve the page")
    inspect = verb("inspect", _inspect, "say how a dataset will be trained, before any GPU is used")
    inspect.add_argument("dataset", metavar="DATASET")
    _add_request_flags(inspect, without=("dataset",))
    _add_request_flags(verb("plan", _plan, "fix every number without training"))
    train = verb("train", _train, "train in the foreground")
    train.add_argument("--resume", metavar="RUN", help="go on with this run: its id, or 'latest'")
    _add_request_flags(train)
    runs = verb("runs", _runs, "list, show, stop, resume, rename, delete or fetch runs")
    runs.add_argument("action", nargs="?", choices=_RUN_ACTIONS, default="list")
    runs.add_argument(
        "run", nargs="?", metavar="RUN", help="run id, or 'latest'; fetch: the copy's OWNER/NAME"
    )
    runs.add_argument("name", nargs="?", metavar="NAME", help="rename: the new name")
    runs.add_argument("--discard", action="store_true", help="stop: keep nothing")
    compare = verb("compare", _compare, "base and adapted answers side by side")
    which = compare.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="RUN", help="run id, or 'latest'")
    which.add_argument("--adapter", metavar="ID", help="adapter on the Hub or in a folder")
    compare.add_argument("--prompt", action="append", default=[], metavar="T")
    compare.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt a line")
    compare.add_argument("--system", default="", metavar="T")
    add_fields(compare, Sampling, ())
    publish = verb("publish", _publish, "push a finished adapter to the Hub and check it")
    publish.add_argument("--run", required=True, metavar="RUN", help="run id, or 'latest'")
    publish.add_argument("--repo", required=True, metavar="OWNER/NAME")
    publish.add_argument("--private", action="store_true")
    publish.add_argument(
        "--for-16-bit",
        action="store_true",
        help="of a run at 3 bits or below: take the repair of the base out, for use on the 16-bit base",
    )
    publish.add_argument(
        "--with-base",
        action="store_true",
        help="of a run at 3 bits or below: publish the packed base too, if the base's licence allows it",
    )
    quantize = verb("quantize", _quantize, "what a bit width costs, measured before training")
    quantize.add_argument("base", metavar="BASE")
    names = ("base_revision", "bits", "mean_bits", "base_gib", "gptq", "init", "heal", "group_size", "r")  # fmt: skip
    others = tuple(n for n in TrainingRequest.model_fields if n not in names)
    add_fields(quantize, TrainingRequest, others)
    verb("doctor", _doctor, "what this machine can do, and what is missing")
    return parser


def _add_request_flags(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    add_fields(parser, TrainingRequest, without)


def _request(options: argparse.Namespace) -> TrainingRequest:
    return parse_request(given(options, TrainingRequest))


def _app(actions: Actions, options: argparse.Namespace) -> None:
    from qlora_space.ui import serve  # gradio takes seconds to import

    serve(actions)


def _inspect(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    inspection = actions.inspect(_request(options), None)
    if unknown := inspection.unknown_format:
        raise DatasetError(unknown.message, unknown.fix)
    terminal.show_inspection(inspection)
    return inspection.model_dump(mode="json")


def _plan(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    plan = actions.plan(_request(options), None)
    terminal.show_plan(plan)
    estimate = plan.estimate
    return {
        "fits": estimate.fits,
        "peak_gib": estimate.peak_gib,
        "seconds": estimate.seconds,
        "cost_usd": estimate.cost_usd,
        "choices": {c.name: {"value": c.value, "why": c.why} for c in plan.choices},
        "plan": plan.model_dump(mode="json"),
    }


def _train(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    offset = 0
    if options.resume:
        run = _resumable(actions, options)
        offset = run.events_file.stat().st_size
        actions.resume(run, None)
    else:
        request = _request(options)
        terminal.show_inspection(actions.inspect(request, None))
        run = actions.start(request, None)
    terminal.show_plan(run.plan())
    terminal.say(f"\nRun {run.id}. Ctrl-C stops it and keeps the adapter.\n")
    _follow(actions, run, offset)
    view = actions.view(run)
    if report := run.report():
        terminal.show_report(report)
    for words in filter(None, (ended_early(view, run.plan()), advice(view, run.plan()))):
        terminal.say(words)
    result = {
        "run_id": run.id,
        "status": view.status,
        "adapter": str(run.adapter_folder) if run.has_adapter else None,
        "report": report.model_dump(mode="json") if report else None,
    }
    if view.failure is not None:  # a line that proves it: not foreseen, so a bug
        raise _RunFailed(result, 1 if view.failure.line else 2)
    return result


def _resumable(actions: Actions, options: argparse.Namespace) -> RunFolder:
    if changed := next(iter(given(options, TrainingRequest)), None):
        raise RequestError(
            f"{changed} cannot be changed while resuming: the run goes on exactly as planned.",
            "Leave it out, or start a new run.",
        )
    return _find(actions, options.resume)


def _follow(actions: Actions, run: RunFolder, offset: int) -> None:
    """Print events from byte `offset` on as they come until the run is over. The first Ctrl-C stops it."""
    view, is_stopping = fold([]), False
    while not view.is_over:
        try:
            events, offset = read_events(run.events_file, offset)
            fold(events, view)
            for event in events:
                terminal.show_event(event, view)
            if not events:
                actions.view(run)
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            if is_stopping:
                raise
            is_stopping = True
            terminal.say("Stopping; the adapter is kept. Ctrl-C again leaves it to itself.")
            actions.stop(run, keep=True)


def _runs(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    if options.action == "list":
        pairs = actions.runs()
        terminal.show_runs(pairs, actions.places())
        return {"runs": [_summary(actions, run) for run, _ in pairs]}
    is_elsewhere = options.action == "fetch"
    run = actions.fetch(options.run or "", None) if is_elsewhere else _find(actions, options.run)
    if options.action == "stop":
        actions.stop(run, keep=not options.discard)
    elif options.action == "resume":
        actions.resume(run, None)
    elif options.action == "rename":
        actions.rename(run, options.name or "")
    summary = _summary(actions, run)
    if options.action == "delete":
        actions.delete(run)
    terminal.say(json.dumps(summary, indent=1))
    return {"runs": [summary]}


def _summary(actions: Actions, run: RunFolder) -> dict[str, Any]:
    view, place = actions.view(run), actions.places().get(run.id)
    return {
        "run_id": run.id,
        "name": run.name(),
        "status": "stalled" if view.stalled_for(time.time()) else view.status,
        "resume_step": actions.resume_step(run, view),
        "queue": dataclasses.asdict(place) if place else None,
        "step": view.step,
        "total_steps": view.total_steps,
        "loss": view.latest("loss"),
        "eval_loss": view.latest("eval_loss"),
        "has_adapter": run.has_adapter,
    }


def _find(actions: Actions, run_id: str | None) -> RunFolder:
    if run_id == "latest" and (runs := list_runs(actions.settings.runs_folder)):
        return runs[0]
    if not run_id:
        raise RunError("No run was named.", "Give its id, or 'latest'.")
    return actions.run(run_id)


def _compare(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    prompts = [*options.prompt, *_prompts_in(options.prompts)]
    run = _find(actions, options.run) if options.run else None
    if not prompts and run is not None:
        prompts = actions.heldout_prompts(run)[:3]
    if not prompts:
        raise RunError("There is nothing to ask.", "Give --prompt or --prompts.")
    sampling = parse_values(Sampling, given(options, Sampling))
    pairs: list[dict[str, str]] = []
    done: Done | None = None
    for prompt in prompts:
        asked = (
            actions.compare(run, prompt, options.system, sampling, None)
            if run
            else actions.compare_adapter(options.adapter, prompt, options.system, sampling, None)
        )
        done = next(reply for reply in asked if isinstance(reply, Done))
        pairs.append({"prompt": prompt, "base": done.base, "adapted": done.adapted})
        terminal.show_pair(prompt, done)
    assert done is not None
    metrics = {"same_base": done.same_base, "tokens_per_second": done.tokens_per_second}
    return {"base_fingerprint": done.base_fingerprint, "pairs": pairs, "metrics": metrics}


def _prompts_in(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        return [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RequestError(
            f"The prompts in {file} cannot be read: {reason}.", "Give a text file, one a line."
        ) from error


def _publish(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    run = _find(actions, options.run)
    kind = {"for_16_bit": options.for_16_bit, "with_base": options.with_base}
    published = actions.publish(run, options.repo, options.private, None, **kind)
    terminal.say(f"Published: {published.url}")
    return dataclasses.asdict(published)


def _quantize(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    found = list(actions.quantize(parse_request(given(options, TrainingRequest)), None))
    terminal.show_quality(found)
    return {"rows": [row for quality in found for row in quality.rows()], "text": found[0].text}


def _doctor(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    hardware, problems = actions.hardware(), []
    if hardware.device == "cpu":
        problems.append(why_no_gpu())
    if hardware.disk_free_gib < 5:
        problems.append(f"Only {hardware.disk_free_gib:.1f} GiB of disk are free.")
    if actions.token(None) is None:
        problems.append(
            "You are not signed in to the Hub: publishing and gated bases need it (hf auth login)."
        )
    versions = terminal.library_versions()
    terminal.show_doctor(hardware, versions, problems)
    return {"gpu": hardware.model_dump(), "versions": versions, "problems": problems}
