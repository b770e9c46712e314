"""An adapter by the name that a person gives it: a run's id, a Hub id or a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_space import hub
from qlora_space.core.adapter_facts import AdapterFacts
from qlora_space.core.comparison import BaseRecipe
from qlora_space.core.errors import RequestError
from qlora_space.runs import RunFolder

Ask = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class NamedAdapter:
    """`revision`: its commit on the Hub, '' for one of this machine."""

    folder: Path
    facts: AdapterFacts
    revision: str = ""


def adapter_of_run(run: RunFolder, ask: Ask) -> NamedAdapter:
    """The newest of the run. Raises RunError while there is none."""
    folder, plan = run.adapter_after(None), run.plan()
    recipe = BaseRecipe(bits=plan.bits, group_size=plan.group_size, is_packed=plan.is_low_bit)
    found = {"base": plan.base.id, "recipe": recipe}
    return NamedAdapter(folder, _read("This run's adapter", folder, ask).model_copy(update=found))


def adapter_at(id: str, token: str | None, ask: Ask, revision: str = "") -> NamedAdapter:
    """On the Hub at a revision, '' for the newest commit, or in a folder. Raises ModelError, HubError or DiskFull."""
    folder = hub.fetch_adapter(id, token, revision)
    is_of_hub = folder.parent.name == "snapshots"
    return NamedAdapter(folder, _read(id, folder, ask), folder.name if is_of_hub else "")


def check_named_base(name: str, facts: AdapterFacts, base: str) -> None:
    """Raises RequestError for an adapter that names another base than the person expects; '' is any."""
    if base and base != facts.base:
        raise RequestError(
            f"{name[:80]} is an adapter on {facts.base[:80]}, not on {base[:80]}.",
            "Leave the base empty, or name that one.",
        )


def _read(name: str, folder: Path, ask: Ask) -> AdapterFacts:
    """By a child of the inspector: whoever wrote it is a stranger."""
    return AdapterFacts.model_validate(ask({"adapter": name, "folder": str(folder.resolve())}))
