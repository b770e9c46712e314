"""Many questions with the answers of all panes: what they come to, and a row for each. Pure functions."""

import random
import statistics
from collections.abc import Sequence
from typing import Literal

from qlora_space.app.ui.render.html import icon, text
from qlora_space.core.comparison import ComparedRow, Done, PaneAnswer
from qlora_space.core.intervals import change_per_token
from qlora_space.core.wording import counted, percent, significant
from qlora_space.runs.comparisons import Comparison

Order = Literal["gain", "loss", "shift", "random", "data"]
Which = Literal["all", "won", "lost", "both_wrong"]
ORDERS: list[tuple[str, Order]] = [
    ("As in the data", "data"),
    ("Best: expected answer gained most", "gain"),
    ("Worst: expected answer lost most", "loss"),
    ("Most different from the base", "shift"),
    ("Random", "random"),
]
FILTERS: list[tuple[str, Which]] = [
    ("All", "all"),
    ("Adapted better", "won"),
    ("Base better", "lost"),
    ("Neither right", "both_wrong"),
]
_RANDOM_SEED = 7  # the same order whenever it is chosen


def arranged(
    rows: Sequence[ComparedRow], order: Order = "data", which: Which = "all"
) -> list[tuple[int, ComparedRow]]:
    """(number of the question, row), those without a figure to sort by last."""
    numbered = [(i, row) for i, row in enumerate(rows) if _is_shown(row, which)]
    match order:
        case "gain":
            numbered.sort(key=lambda each: -_or(each[1].gain, float("-inf")))
        case "loss":
            numbered.sort(key=lambda each: _or(each[1].gain, float("inf")))
        case "shift":
            numbered.sort(key=lambda each: -_or(each[1].adapted.shift, float("-inf")))
        case "random":
            random.Random(_RANDOM_SEED).shuffle(numbered)
        case "data":
            pass
    return numbered


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _is_shown(row: ComparedRow, which: Which) -> bool:
    base, adapted = row.base, row.adapted
    match which:
        case "won":
            return adapted.worth > base.worth
        case "lost":
            return adapted.worth < base.worth
        case "both_wrong":
            return base.is_right is False and adapted.is_right is False
    return True


def summary(done: Done, labels: Sequence[str]) -> str:
    """What the answers are worth by the run's score, and what the adapter did to the expected ones."""
    tally = done.tally
    if tally is None:
        return f'<p class="tally">{counted(len(done.rows), "prompt")}, none with an expected answer.</p>'
    worth = ", ".join(
        f"<b>{text(label)}</b> {figure}"
        for label, figure in zip(labels, tally.figures, strict=True)
    )
    gained = _gained([row for row in done.rows if row.expected.strip()])
    return f'<p class="tally">{tally.what}: {worth}. {text(gained)}</p>'


def _gained(known: Sequence[ComparedRow]) -> str:
    gains = [row.gain for row in known if row.gain is not None]
    if not gains:
        return ""
    higher = sum(gain > 0 for gain in gains)
    mean = statistics.fmean(gains)
    found = change_per_token(gains, [1] * len(gains))
    interval = f" (95 % interval {_signed(found.low)} to {_signed(found.high)})" if found else ""
    return (
        f"The adapter makes the expected answer likelier on {higher} of {len(gains)} prompts: "
        f"{_signed(mean)} nats per token on average{interval}."
    )


def rows_table(
    kept: Comparison, order: Order = "data", which: Which = "all", opened: int | None = None
) -> str:
    """A row for each question; its button opens the answers side by side."""
    shown = arranged(kept.done.rows, order, which)
    if not shown:
        return '<p class="waiting">No prompt is like that.</p>'
    names = ("", "Prompt", "Expected", *kept.line.labels, "Difference")
    head = "".join(f'<th scope="col">{text(name) or _NUMBER}</th>' for name in names)
    body = "".join(_row(number, row, names, number == opened) for number, row in shown)
    count = f'<p class="tally"><small>{len(shown)} of {counted(len(kept.done.rows), "prompt")}</small></p>'
    return (
        f'{count}<div class="table-frame rows" tabindex="0" role="region" aria-label="Answers">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


_NUMBER = '<span class="sr">Number</span>'


def _row(number: int, row: ComparedRow, names: Sequence[str], is_open: bool) -> str:
    mark = ' aria-current="true"' if is_open else ""
    name = f"Open prompt {number + 1}"
    button = f'<button type="button" data-pick="{number}" aria-label="{name}">{number + 1}</button>'
    gain = "" if row.gain is None else _signed(row.gain)
    answers = [_answer(answer, row.expected) for answer in row.answers]
    cells = [button, _cell(row.prompt), _cell(row.expected), *answers, gain]
    shown = "".join(
        f'<td data-label="{text(name)}">{cell}</td>'
        for name, cell in zip(names, cells, strict=True)
    )
    return f"<tr{mark}>{shown}</tr>"


def _answer(answer: PaneAnswer, expected: str) -> str:
    if answer.text.strip() == expected.strip() != "":
        return f'<span class="right">{icon("done")}as expected</span>'
    worth = f'<span class="right">{icon("done")}right</span>' if answer.is_right else ""
    if answer.score is not None and 0 < answer.score < 1:
        worth = f"<small>{percent(answer.score)}</small>"
    return worth + _cell(answer.text)


def _cell(words: str) -> str:
    return f'<div class="clamped">{text(words[:600])}</div>'


def _signed(nats: float) -> str:
    return f"{'+' if nats > 0 else '−' if nats < 0 else ''}{significant(abs(nats), 2)}"


def answering(done: int, total: int) -> str:
    """Progress of a batch."""
    return (
        f'<div class="notice notice-info" role="status"><progress max="{total}" value="{done}"></progress>'
        f"<span>{done} of {counted(total, 'prompt')} answered</span></div>"
    )
