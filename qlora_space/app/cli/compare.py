"""The command `compare`: prompts from the command line, a file or the held-out rows, answered as one batch."""

import argparse
import json
from pathlib import Path
from typing import Any

from qlora_space.app.actions import Actions
from qlora_space.app.cli import terminal
from qlora_space.app.cli.commands import find_run
from qlora_space.app.cli.flags import given
from qlora_space.app.comparing import compare_and_keep
from qlora_space.core.comparison import CompareOptions, Done, Loading, Question, Sampling
from qlora_space.core.errors import RequestError, RunError
from qlora_space.core.parsing import parse_values
from qlora_space.runs import RunFolder

_ASKED_BY_DEFAULT = 3  # held-out rows


def compare(actions: Actions, options: argparse.Namespace) -> dict[str, Any]:
    run = find_run(actions, options.run) if options.run else None
    questions = _questions(actions, options, run)
    also = {"others": options.also} if run and options.also else {}
    chosen = parse_values(CompareOptions, given(options, CompareOptions) | also)
    sampling = parse_values(Sampling, given(options, Sampling))
    chosen = chosen.model_copy(update={"sampling": sampling})
    replies = (
        compare_and_keep(actions, run, questions, chosen)
        if run
        else actions.compare_adapter(options.adapter, questions, chosen)
    )
    done: Done | None = None
    for reply in replies:
        if isinstance(reply, Loading):
            terminal.emit(reply.text)
        elif isinstance(reply, Done):
            done = reply
    assert done is not None
    for row in done.rows:
        terminal.show_row(row)
    terminal.show_comparison(done)
    return values_of(done)


def values_of(done: Done) -> dict[str, Any]:
    """As --json prints it."""
    metrics = {
        "same_base": done.same_base,
        "tokens_per_second": done.tokens_per_second,
        "seconds": done.seconds,
    }
    pairs = [row.values() for row in done.rows]
    return {"base_fingerprint": done.base_fingerprint, "pairs": pairs, "metrics": metrics}


def _questions(
    actions: Actions, options: argparse.Namespace, run: RunFolder | None
) -> list[Question]:
    """Raises RunError if there is none."""
    written = [Question(prompt=prompt, system=options.system) for prompt in options.prompt]
    questions = [*written, *_in_file(options.prompts, options.system)]
    if run is not None and (options.heldout or not questions):
        rows = actions.heldout_questions(run)
        questions += rows if options.heldout else rows[:_ASKED_BY_DEFAULT]
    if not questions:
        raise RunError("There is nothing to ask.", "Give --prompt or --prompts.")
    return questions


def _in_file(file: Path | None, system: str) -> list[Question]:
    if file is None:
        return []
    try:
        lines = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RequestError(
            f"The prompts in {file} cannot be read: {reason}.", "Give a text file, one a line."
        ) from error
    if file.suffix == ".jsonl":
        return [_question(line, number, system) for number, line in enumerate(lines, 1)]
    return [Question(prompt=line, system=system) for line in lines]


def _question(line: str, number: int, system: str) -> Question:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise RequestError(
            f"Line {number} of the prompts is no JSON object.", 'Write {"prompt": "..."}.'
        )
    return parse_values(Question, {"system": system, **values})
