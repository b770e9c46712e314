"""Blind votes of a person on answers of their run: which pair is next, and what was chosen."""

import random
import secrets
import time
from dataclasses import dataclass

from qlora_space.app.actions import Actions
from qlora_space.core.comparison import ComparedRow
from qlora_space.core.errors import RunError
from qlora_space.runs import RunFolder
from qlora_space.runs.comparisons import comparison_lines, find_comparison
from qlora_space.runs.votes import Choice, Vote, add_vote, votes


@dataclass(frozen=True)
class Ballot:
    """Pairs that wait for a vote. `is_swapped`: the adapter stands on the left, drawn anew for each pair."""

    comparison: str
    label: str
    rows: tuple[tuple[int, ComparedRow], ...] = ()
    is_swapped: bool = False
    num_all: int = 0

    @property
    def row(self) -> ComparedRow | None:
        """That is voted on now; None: all are done."""
        return self.rows[0][1] if self.rows else None

    @property
    def sides(self) -> tuple[str, str]:
        """Left and right answer. Raises IndexError if all are done."""
        row = self.rows[0][1]
        pair = (row.base.text, row.adapted.text)
        return (pair[1], pair[0]) if self.is_swapped else pair

    def choice_of(self, side: str) -> Choice:
        """Of 'left', 'right' or 'tie'."""
        if side == "tie":
            return "tie"
        return "adapted" if (side == "left") == self.is_swapped else "base"

    def next(self) -> "Ballot":
        return Ballot(self.comparison, self.label, self.rows[1:], _draw(), self.num_all)


def newest_batch(acting: Actions, run: RunFolder) -> str:
    """Id of the newest comparison of many prompts; '' if there is none."""
    lines = comparison_lines(acting.run(run.id))
    return next((line.id for line in lines if line.num_questions > 1), "")


def open_ballot(acting: Actions, run: RunFolder, comparison_id: str) -> Ballot:
    """The pairs of a comparison that differ and have no vote yet, in random order. Raises RunError."""
    run = acting.run(run.id)
    kept = find_comparison(run, comparison_id)
    voted = {vote.number for vote in votes(run) if vote.comparison == comparison_id}
    rows = [(i, row) for i, row in enumerate(kept.done.rows) if row.base.text != row.adapted.text]
    waiting = [each for each in rows if each[0] not in voted]
    random.SystemRandom().shuffle(waiting)
    return Ballot(comparison_id, kept.line.labels[1], tuple(waiting), _draw(), len(rows))


def _draw() -> bool:
    return bool(secrets.randbits(1))


def cast(acting: Actions, run: RunFolder, ballot: Ballot, side: str) -> Ballot:
    """Keep the vote with the run; returns what is left. Raises RunError, DiskFull."""
    run = acting.run(run.id)
    if not ballot.rows:
        raise RunError("There is no pair to vote on.", "Start voting again.")
    number, row = ballot.rows[0]
    answers = tuple(answer.model_copy(update={"tokens": ()}) for answer in row.answers[:2])
    history = row.history[:2] if len(row.history) > 1 else row.history
    vote = Vote(
        time=time.time(),
        comparison=ballot.comparison,
        number=number,
        label=ballot.label,
        choice=ballot.choice_of(side),
        row=row.model_copy(update={"answers": answers, "history": history}),
    )
    add_vote(run, vote)
    return ballot.next()
