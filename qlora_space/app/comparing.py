"""Comparisons of a person's runs: made, and kept with the run."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from qlora_space.app.actions import Actions
from qlora_space.app.compare_requests import adapter_of_other_run, check_base_of
from qlora_space.core.comparison import CompareOptions, Done, Kept, Question, Reply
from qlora_space.core.errors import DiskFull
from qlora_space.runs import RunFolder
from qlora_space.runs.comparisons import keep_comparison

_log = logging.getLogger(__name__)


def compare_and_keep(
    acting: Actions, run: RunFolder, questions: Sequence[Question], options: CompareOptions
) -> Iterator[Reply]:
    """As Actions.compare, with the further adapters that `options` names. What was compared is kept with the run, if
    there is room, and named before Done."""
    run = acting.run(run.id)
    names = labels(acting, options)
    others = [_beside(acting, run, name) for name in options.others]
    for reply in acting.compare(run, questions, options, others):
        if isinstance(reply, Done) and (kept := _keep(run, names, options, reply)):
            yield Kept(id=kept)
        yield reply


def _beside(acting: Actions, run: RunFolder, name: str) -> Path:
    """The folder of a run's adapter, or of one on the Hub. Raises QloraSpaceError unless the base is that of `run`."""
    if acting.owns(name):
        return adapter_of_other_run(run, acting.run(name))
    named = acting.read_adapter(name, "compare an adapter")
    check_base_of(name, named.facts, run)
    return named.folder


def _keep(run: RunFolder, names: tuple[str, ...], options: CompareOptions, done: Done) -> str:
    try:
        return keep_comparison(run, names, options, done)
    except DiskFull as error:  # the answers are worth more than their record
        _log.warning("A comparison was not kept: %s", error)
        return ""


def labels(acting: Actions, options: CompareOptions) -> tuple[str, ...]:
    """Names of the panes, the base's first."""
    strength = f"strength {options.strength:g}" if options.strength != 1 else ""
    step = f"step {options.step}" if options.step is not None else ""
    others = [acting.run(name).name() if acting.owns(name) else name for name in options.others]
    named = [("Adapted", step), *((name, "") for name in others)]
    return "Base", *(", ".join(filter(None, (*parts, strength))) for parts in named)


def on_the_same_base(acting: Actions, run: RunFolder) -> list[RunFolder]:
    """Other runs of this person whose adapters can stand beside that of `run`, newest first."""
    plan = run.plan()
    found = []
    for other, view in acting.runs():
        if other != run and view.is_over and other.has_adapter:
            theirs = other.plan()
            same = (theirs.base.id, theirs.base.sha, theirs.bits)
            if same == (plan.base.id, plan.base.sha, plan.bits):
                found.append(other)
    return found
