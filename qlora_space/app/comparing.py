"""Comparisons of a person's runs: made, and kept with the run."""

import logging
from collections.abc import Iterator, Sequence

from qlora_space.app.actions import Actions
from qlora_space.core.comparison import CompareOptions, Done, Kept, Question, Reply
from qlora_space.core.errors import DiskFull
from qlora_space.runs import RunFolder
from qlora_space.runs.comparisons import keep_comparison

_log = logging.getLogger(__name__)


def compare_and_keep(
    acting: Actions, run: RunFolder, questions: Sequence[Question], options: CompareOptions
) -> Iterator[Reply]:
    """As Actions.compare. What was compared is kept with the run, if there is room, and named before Done."""
    run = acting.run(run.id)
    names = labels(options)
    for reply in acting.compare(run, questions, options):
        if isinstance(reply, Done) and (kept := _keep(run, names, options, reply)):
            yield Kept(id=kept)
        yield reply


def _keep(run: RunFolder, names: tuple[str, ...], options: CompareOptions, done: Done) -> str:
    try:
        return keep_comparison(run, names, options, done)
    except DiskFull as error:  # the answers are worth more than their record
        _log.warning("A comparison was not kept: %s", error)
        return ""


def labels(options: CompareOptions) -> tuple[str, ...]:
    """Names of the panes, the base's first."""
    parts = [f"step {options.step}"] if options.step is not None else []
    parts += [f"strength {options.strength:g}"] if options.strength != 1 else []
    return "Base", f"Adapted, {', '.join(parts)}" if parts else "Adapted"
