"""A run folder as `start` makes it, without a worker."""

from pathlib import Path

from qlora_space.runs import RunFolder, create_run
from tests.train.conftest import demo_plan


def demo_run(home: Path) -> RunFolder:
    from qlora_space.core.request import TrainingRequest

    return create_run(home / "runs", TrainingRequest(), demo_plan())
