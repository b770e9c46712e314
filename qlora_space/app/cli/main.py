"""The same job without a browser: `python -m qlora_space VERB`.

With --json one object goes to stdout; everything for people goes to stderr. Exit status: 0 done, 2 the user
must change something (one sentence names it), 1 a bug of ours.
"""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from qlora_space import __version__
from qlora_space.app.actions import Actions
from qlora_space.app.cli import commands, terminal
from qlora_space.app.cli.compare import compare
from qlora_space.app.cli.export import export_to_folder
from qlora_space.app.cli.flags import add_fields
from qlora_space.app.cli.prove import prove_published
from qlora_space.app.cli.publish import demo_space, publish
from qlora_space.core.comparison import CompareOptions, Sampling
from qlora_space.core.errors import QloraSpaceError
from qlora_space.core.export import ExportOptions, ModelFormat
from qlora_space.core.logs import log_to_stderr
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import load_settings
from qlora_space.core.visitor import THIS_MACHINE
from qlora_space.runs.publication import SpaceHardware

_RUN_ACTIONS = ("list", "show", "stop", "resume", "rename", "delete", "fetch")
_QUANTIZE_OPTIONS = (
    "base_revision",
    "bits",
    "mean_bits",
    "base_gib",
    "calibrated",
    "init",
    "heal",
    "group_size",
    "r",
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    log_to_stderr(logging.WARNING)
    try:
        with contextlib.closing(Actions(load_settings()).for_visitor(THIS_MACHINE)) as actions:
            result = options.command(actions, options)
    except QloraSpaceError as error:
        terminal.emit(str(error))
        return 2
    except commands.RunFailed as failed:
        result, status = failed.result, failed.status
    except KeyboardInterrupt:
        return 130
    else:
        status = 0
    if options.json and result is not None:
        sys.stdout.write(json.dumps(result) + "\n")
    return status


def build_parser() -> argparse.ArgumentParser:
    """All commands with their flags; `options.command` is the function of the chosen one."""
    parser = argparse.ArgumentParser(
        prog="qlora-space", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--version", action="version", version=__version__)
    children = parser.add_subparsers(required=True, metavar="VERB")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        child = children.add_parser(name, help=text, description=text)
        child.set_defaults(command=function)
        child.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        return child

    command("app", commands.app, "serve the page")
    _add_inspect_flags(
        command(
            "inspect", commands.inspect, "say how a dataset will be trained, before any GPU is used"
        )
    )
    plan = command("plan", commands.plan, "fix every number without training")
    _add_like(plan)
    add_fields(plan, TrainingRequest)
    _add_train_flags(command("train", commands.train, "train in the foreground"))
    _add_runs_flags(
        command("runs", commands.runs, "list, show, stop, resume, rename, delete or fetch runs")
    )
    _add_compare_flags(command("compare", compare, "base and adapted answers side by side"))
    _add_publish_flags(
        command(
            "publish",
            publish,
            "push a finished adapter, or an export of it, to the Hub and check it",
        )
    )
    _add_demo_space_flags(
        command("demo-space", demo_space, "a Space of your own where base and adapter answer")
    )
    prove = command("prove", prove_published, "download what was published again and compare it")
    prove.add_argument("--run", required=True, metavar="RUN", help="run id, or 'latest'")
    _add_export_flags(
        command("export", export_to_folder, "a finished run as one model in a folder")
    )
    _add_quantize_flags(
        command("quantize", commands.quantize, "what a bit width costs, measured before training")
    )
    _add_deploy_flags(
        command("deploy", commands.deploy, "put this app on a Space of your own, or update it")
    )
    command("doctor", commands.doctor, "what this machine can do, and what is missing")
    return parser


def _add_inspect_flags(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("dataset", metavar="DATASET")
    add_fields(inspect, TrainingRequest, without=("dataset",))


def _add_train_flags(train: argparse.ArgumentParser) -> None:
    train.add_argument("--resume", metavar="RUN", help="go on with this run: its id, or 'latest'")
    train.add_argument(
        "--only-make",
        action="store_true",
        help="make the run and print how torchrun starts it, on one machine or several",
    )
    _add_like(train)
    add_fields(train, TrainingRequest)


def _add_like(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--like",
        metavar="OWNER/NAME",
        help="with the settings of the run that this adapter on the Hub came from; other flags change them",
    )


def _add_runs_flags(runs: argparse.ArgumentParser) -> None:
    runs.add_argument("action", nargs="?", choices=_RUN_ACTIONS, default="list")
    runs.add_argument(
        "run", nargs="?", metavar="RUN", help="run id, or 'latest'; fetch: the copy's OWNER/NAME"
    )
    runs.add_argument("name", nargs="?", metavar="NAME", help="rename: the new name")
    runs.add_argument("--discard", action="store_true", help="stop: keep nothing")


def _add_compare_flags(compare: argparse.ArgumentParser) -> None:
    which = compare.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="RUN", help="run id, or 'latest'")
    which.add_argument("--adapter", metavar="ID", help="adapter on the Hub or in a folder")
    compare.add_argument("--prompt", action="append", default=[], metavar="T")
    compare.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="one prompt a line; .jsonl: objects with prompt, and system and expected if there are",
    )
    compare.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="RUN",
        help="further adapter on the same base: id of a run, or on the Hub; up to three",
    )
    compare.add_argument("--heldout", action="store_true", help="all held-out rows of the run")
    compare.add_argument("--system", default="", metavar="T")
    add_fields(compare, CompareOptions, without=("others", "sampling"))
    add_fields(compare, Sampling)


def _add_publish_flags(publish: argparse.ArgumentParser) -> None:
    publish.add_argument("--run", required=True, metavar="RUN", help="run id, or 'latest'")
    publish.add_argument("--repo", required=True, metavar="OWNER/NAME")
    publish.add_argument("--private", action="store_true")
    publish.add_argument(
        "--export",
        choices=get_args(ModelFormat),
        help="this export instead of the adapter, in a repository of its own; it is made if it is not there",
    )
    publish.add_argument(
        "--step", type=int, metavar="N", help="a kept checkpoint instead of the run's adapter"
    )
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
    _add_replace_flag(publish)


def _add_demo_space_flags(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("--run", required=True, metavar="RUN", help="run id, or 'latest'")
    demo.add_argument("--repo", metavar="OWNER/NAME", help="default: the adapter's name and -demo")
    demo.add_argument(
        "--private", action="store_true", help="that of a private adapter or base always is"
    )
    demo.add_argument(
        "--hardware",
        choices=get_args(SpaceHardware),
        help="of a new Space; default: by the size of the base",
    )
    _add_replace_flag(demo)


def _add_replace_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--replace",
        action="store_true",
        help="overwrite files that somebody changed on the Hub since this run was published there",
    )


def _add_export_flags(export: argparse.ArgumentParser) -> None:
    export.add_argument("--run", required=True, metavar="RUN", help="run id, or 'latest'")
    export.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="a new folder")
    add_fields(export, ExportOptions)


def _add_deploy_flags(deploy: argparse.ArgumentParser) -> None:
    deploy.add_argument("--to", required=True, metavar="OWNER/NAME", help="the Space")
    deploy.add_argument("--hardware", metavar="NAME", help="for example l4x1; default: as it is")
    deploy.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="default: as it is; a new Space is private",
    )
    deploy.add_argument(
        "--sleep-seconds", type=int, metavar="N", help="sleep after so long without a visitor"
    )
    deploy.add_argument(
        "--bucket", metavar="OWNER/NAME", help="storage bucket that keeps the runs over restarts"
    )
    deploy.add_argument(
        "--variable",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="everybody can read it",
    )
    deploy.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="its value is taken from the environment variable of that name",
    )
    when = deploy.add_mutually_exclusive_group()
    when.add_argument(
        "--dry-run", action="store_true", help="only say what would be done (default)"
    )
    when.add_argument("--yes", action="store_true", help="do it")


def _add_quantize_flags(quantize: argparse.ArgumentParser) -> None:
    quantize.add_argument("base", metavar="BASE")
    others = tuple(n for n in TrainingRequest.model_fields if n not in _QUANTIZE_OPTIONS)
    add_fields(quantize, TrainingRequest, without=others)
    quantize.add_argument(
        "--format",
        dest="written_as",
        choices=("gptq",),
        help="write the base as others load it, with --to; calibrated, of one width",
    )
    quantize.add_argument("--to", type=Path, metavar="FOLDER", help="a new folder for --format")
