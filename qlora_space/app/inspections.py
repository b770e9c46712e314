"""Inspections, kept: the page asks for the same again with every keystroke."""

from collections.abc import Callable
from typing import Any

from qlora_space.core.facts import ModelFacts
from qlora_space.core.inspection import Inspection

_MOST = 32
_Found = tuple[ModelFacts, Inspection]


class Inspections:
    """The newest, of all visitors; a key says whose they are."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], _Found] = {}

    def of(self, key: tuple[str, ...], ask: Callable[[], list[dict[str, Any]]]) -> _Found:
        """`ask` makes the inspector's two replies."""
        if key not in self._known:
            facts, inspection = ask()
            if len(self._known) >= _MOST:
                self._known.pop(next(iter(self._known)))
            self._known[key] = (
                ModelFacts.model_validate(facts),
                Inspection.model_validate(inspection),
            )
        return self._known[key]
