"""A link is of one run, cannot be guessed, and ends when its owner says so."""

from pathlib import Path

import pytest

from qlora_space.core.errors import RunError
from qlora_space.core.request import TrainingRequest
from qlora_space.runs import RunFolder, create_run
from qlora_space.runs.sharing import find_shared, share, share_key, shared_address, stop_sharing
from tests.train.conftest import demo_plan


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run(tmp_path, TrainingRequest(), demo_plan())


def test_a_run_is_not_shared_until_its_owner_shares_it(run: RunFolder) -> None:
    assert not share_key(run)
    assert not shared_address(run)
    for key in ("", "x", "\ud800", share_key(run)):
        with pytest.raises(RunError, match="Nothing is shared"):
            find_shared(run.path.parent, run.id, key)


def test_sharing_twice_is_one_link_and_after_stopping_another(run: RunFolder) -> None:
    first = share(run)
    assert share(run) == first
    assert len(first) >= 43
    assert find_shared(run.path.parent, run.id, first) == run
    stop_sharing(run)
    with pytest.raises(RunError):
        find_shared(run.path.parent, run.id, first)
    assert share(run) != first
    with pytest.raises(RunError):
        find_shared(run.path.parent, run.id, first)


def test_a_key_opens_its_own_run_only(run: RunFolder) -> None:
    other = create_run(run.path.parent, TrainingRequest(), demo_plan())
    key = share(run)
    share(other)
    for run_id in (other.id, "0" * 32, f"../{run.path.parent.name}/{run.id}", run.id.upper(), ""):
        with pytest.raises(RunError) as caught:
            find_shared(run.path.parent, run_id, key)
        assert "Nothing is shared by this link" in str(caught.value)
