"""Tiny checkpoints, made once for every file of tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.experts.tiny_mixtures import build


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = build(family, tmp_path_factory.mktemp(family) / family)
        return made[family]

    return of
