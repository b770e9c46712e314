"""What every part of a training shares: the run folder, its plan, and the ways to report and to be interrupted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from qlora_space.core.events import Event, Note, Phase, PhaseName
from qlora_space.core.interruption import Interruption
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder

Emit = Callable[[Event], object]


@dataclass(frozen=True)
class RunContext:
    """One attempt at one run."""

    run: RunFolder
    plan: Plan
    emit: Emit
    interruption: Interruption
    heartbeat: Callable[[], None]  # the process lives: for whoever watches it from outside

    @property
    def on_gpu(self) -> bool:
        return self.plan.hardware.device == "cuda"

    def note(self, text: str, level: Literal["info", "warning"] = "info") -> None:
        self.emit(Note(level=level, text=text))

    def phase(self, name: PhaseName, done: int, total: int) -> None:
        self.emit(Phase(name=name, done=done, total=total))

    def check_in(self) -> None:
        """Before each forward pass and while waiting. Raises Interrupted."""
        self.heartbeat()
        self.interruption.check()

    def take_request(self, name: Literal["save", "sample"]) -> bool:
        """Whether a person asked for it since it was last taken."""
        try:
            (self.run.path / name).unlink()
        except FileNotFoundError:
            return False
        return True
