"""An adapter by the name that a person gives it: a run's id, a Hub id or a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_space import hub
from qlora_space.core.adapter_facts import AdapterFacts
from qlora_space.core.comparison import BaseRecipe
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


def adapter_at(id: str, token: str | None, ask: Ask) -> NamedAdapter:
    """On the Hub or in a folder. Raises ModelError, HubError or DiskFull."""
    folder = hub.fetch_adapter(id, token)
    is_of_hub = folder.parent.name == "snapshots"
    return NamedAdapter(folder, _read(id, folder, ask), folder.name if is_of_hub else "")


def _read(name: str, folder: Path, ask: Ask) -> AdapterFacts:
    """By a child of the inspector: whoever wrote it is a stranger."""
    return AdapterFacts.model_validate(ask({"adapter": name, "folder": str(folder.resolve())}))
