"""Each bomb is refused in a sentence within ten seconds, by a child that stays small, while others are answered."""

import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_space.core.errors import QloraSpaceError
from qlora_space.places.inspector import InspectorLimits, InspectorPool
from tests.places.bombs import Bomb, Watch, bombs, inspections
from tests.places.test_inspector import question, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limits")
_MOST_MIB = 1.5e9 / 2**20
_MOST_SECONDS = 10  # of CPU: how long one waits also depends on who else computes


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InspectorPool]:
    limits = InspectorLimits(wait_seconds=60.0, answer_seconds=120.0)
    pool = InspectorPool(tmp_path_factory.mktemp("logs"), limits)
    pool.ask(question())  # all is imported
    yield pool
    pool.close()


def _cases() -> Iterator[object]:
    for bomb in bombs():
        marks = [pytest.mark.slow] if bomb.is_costly else []
        yield pytest.param(bomb, id=bomb.name, marks=marks)


@pytest.mark.parametrize("bomb", _cases())
def test_a_bomb_is_refused_in_a_sentence_at_little_cost(
    pool: InspectorPool, tmp_path: Path, bomb: Bomb
) -> None:
    asked = question(base=str(bomb.base(tmp_path)))
    with Watch() as watch, pytest.raises(QloraSpaceError) as caught:
        pool.ask(asked)
    assert re.search(bomb.sentence, str(caught.value).replace("\n", "!"))
    assert watch.peak_mib < _MOST_MIB
    assert watch.seconds < _MOST_SECONDS
    until(lambda: not inspections(), 5)


def test_others_are_answered_meanwhile(pool: InspectorPool, tmp_path: Path) -> None:
    (bomb,) = (bomb for bomb in bombs() if bomb.name == "template that loops")
    asked = question(base=str(bomb.base(tmp_path)))
    attack = threading.Thread(target=_ask_in_vain, args=(pool, asked))
    attack.start()
    until(inspections)
    before = time.monotonic()
    assert len(pool.ask(question(), "another")) == 2
    assert attack.is_alive()
    assert time.monotonic() - before < 5
    attack.join()


def _ask_in_vain(pool: InspectorPool, message: dict[str, object]) -> None:
    with pytest.raises(QloraSpaceError):
        pool.ask(message, "attacker")
