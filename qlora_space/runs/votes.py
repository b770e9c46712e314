"""Blind votes between the base and a run's adapter, kept with the run: votes.jsonl, one a line."""

import json
import os
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_space.core.comparison import ComparedRow
from qlora_space.core.errors import DiskFull, RunError
from qlora_space.runs.folder import RunFolder

Choice = Literal["base", "adapted", "tie"]
_MOST_VOTES = 10_000


class Vote(BaseModel):
    """On one question of a comparison that was kept; `label` names the adapter. `time` is Unix time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: float
    comparison: str
    number: int
    label: str
    choice: Choice
    row: ComparedRow = Field(description="Base and adapter alone, without tokens.")


class Tally(BaseModel):
    model_config = ConfigDict(frozen=True)

    wins: int = 0
    losses: int = 0
    ties: int = 0


def add_vote(run: RunFolder, vote: Vote) -> None:
    """Raises DiskFull, or RunError beyond ten thousand."""
    if len(votes(run)) >= _MOST_VOTES:
        raise RunError(f"This run has {_MOST_VOTES:,} votes, as many as are kept.", "Export them.")
    line = vote.model_dump_json().encode() + b"\n"
    try:
        handle = os.open(run.votes_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            written = os.write(handle, line)
        finally:
            os.close(handle)
    except OSError as error:
        raise DiskFull(
            f"The vote could not be kept: {error.strerror}.", "Free some space."
        ) from error
    if written < len(line):
        raise DiskFull("The vote could not be kept: the disk is full.", "Free some space.")


def votes(run: RunFolder) -> list[Vote]:
    """Oldest first; a line that a full disk cut off is left out."""
    if not run.votes_file.is_file():
        return []
    return list(_read(run.votes_file.read_bytes()))


def _read(content: bytes) -> Iterator[Vote]:
    for line in content.split(b"\n"):
        try:
            if line:
                yield Vote.model_validate_json(line)
        except ValidationError:
            continue


def tally(found: list[Vote]) -> Tally:
    """Wins are the adapter's."""
    count = {
        choice: sum(vote.choice == choice for vote in found)
        for choice in ("adapted", "base", "tie")
    }
    return Tally(wins=count["adapted"], losses=count["base"], ties=count["tie"])


def preference_rows(found: list[Vote]) -> str:
    """The decided votes as JSON lines that TRL and this app read: prompt, chosen and rejected, each as messages."""
    return "".join(
        json.dumps(_preference(vote), ensure_ascii=False) + "\n"
        for vote in found
        if vote.choice != "tie"
    )


def _preference(vote: Vote) -> dict[str, Any]:
    row = vote.row
    turns = row.conversation(row.turns_of(0))
    base, adapted = row.base.text, row.adapted.text
    chosen, rejected = (adapted, base) if vote.choice == "adapted" else (base, adapted)
    return {
        "prompt": [{"role": role, "content": content} for role, content in turns],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
