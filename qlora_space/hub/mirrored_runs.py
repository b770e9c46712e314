"""The copies of runs that an account has on the Hub: how they are named, recognised and found again.

A machine that lost its disk knows nothing of them. Each has a card (README.md) with a tag and a few facts, so that one
search finds all of an account's copies without opening them.
"""

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from huggingface_hub import ModelCardData
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_space.core.errors import HubError
from qlora_space.hub.connection import explained_errors, hub_api
from qlora_space.runs import RunFolder

MIRROR_TAG = "qlora-space-mirror"
_FACTS = "qlora_space"
_NEVER = datetime.min.replace(tzinfo=UTC)
_MOST_COPIES = 200
_MOST_NAME_LETTERS = 40
_TEXT = """
# Copy of a run

Written by qlora_space while it trains. `qlora-space runs fetch {repo}` brings it to another machine.
"""


class _Facts(BaseModel):
    """What the card says about the run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    name: str = Field(default="", max_length=500)
    step: int = Field(default=0, ge=0)
    done: bool = False


@dataclass(frozen=True)
class MirroredRun:
    """A copy on the Hub. `step`: of its newest checkpoint, 0 for none; `done`: the run had its report."""

    repo: str
    run_id: str
    name: str
    step: int
    done: bool
    updated_at: datetime | None


def mirror_name(account: str, run_name: str) -> str:
    """A new repository's name for the copy of a run: the account's, readable, and never used before."""
    words = re.sub(r"[^a-z0-9]+", "-", run_name.lower())[:_MOST_NAME_LETTERS].strip("-")
    return f"{account}/{words or 'run'}-mirror-{secrets.token_hex(4)}"


def mirror_card(run: RunFolder, repo: str) -> str:
    """README.md of a copy."""
    facts = {
        "run_id": run.id,
        "name": run.name(),
        "step": run.resume_step() or 0,
        "done": run.report_file.is_file(),
    }
    data = ModelCardData(tags=[MIRROR_TAG], qlora_space=facts)
    return f"---\n{data.to_yaml()}\n---\n{_TEXT.format(repo=repo)}"


def mirrored_runs(account: str, token: str | None) -> list[MirroredRun]:
    """Copies in private repositories of the account, the newest first. Raises HubError if the Hub does not answer."""
    with explained_errors(account, HubError):
        found = list(
            hub_api(token).list_models(
                author=account,
                filter=MIRROR_TAG,
                expand=["cardData", "lastModified", "private"],
                limit=_MOST_COPIES,
            )
        )
    runs = [
        _mirrored_run(model.id, model.card_data.to_dict(), model.last_modified)
        for model in found
        if model.private and model.card_data and model.id.split("/")[0] == account
    ]
    known = [run for run in runs if run is not None]
    return sorted(known, key=lambda run: run.updated_at or _NEVER, reverse=True)


def _mirrored_run(
    repo: str, card: dict[str, Any], updated_at: datetime | None
) -> MirroredRun | None:
    """None for a card that is not ours, whatever its tags say."""
    try:
        facts = _Facts.model_validate(card.get(_FACTS))
    except ValidationError:
        return None
    return MirroredRun(repo, facts.run_id, facts.name, facts.step, facts.done, updated_at)
