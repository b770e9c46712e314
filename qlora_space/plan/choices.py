"""What was chosen for the user, value by value, each with its reason."""

from dataclasses import dataclass, field
from typing import TypeVar

from qlora_space.plan.plan import Choice

T = TypeVar("T")


@dataclass
class Choices:
    """Collects what was chosen for the user."""

    made: list[Choice] = field(default_factory=list)

    def pick(self, name: str, asked: T | None, chosen: T, why: str) -> T:
        if asked is not None:
            return asked
        self.made.append(Choice(name=name, value=_shown(chosen), why=why))
        return chosen


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
