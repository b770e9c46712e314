"""What belongs to whom, seen from the actions of two people on one Space."""

import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_space.app.actions import Actions
from qlora_space.app.ui.uploads import dataset_source, form_value, keep_upload
from qlora_space.core.comparison import Question
from qlora_space.core.errors import DiskFull, RequestError, RunError
from qlora_space.core.limits import Limits
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Home, Settings
from qlora_space.core.visitor import ANONYMOUS, LOCAL, THIS_MACHINE, Visitor
from qlora_space.runs import PushRequest
from tests.app.ui.fake import FakeActions

ALICE, BOB = Visitor("hub:alice", "a"), Visitor("hub:bob", "b")


@pytest.fixture
def space(tmp_path: Path) -> FakeActions:
    limits = Limits(live_runs=2, waiting_runs=3, upload_gib=1e-6, min_free_gib=0)
    settings = Settings(home=tmp_path, is_space=True, limits=limits)
    return FakeActions(settings, step_seconds=30.0, num_steps=5)


def test_two_people_who_press_the_same_start_have_two_runs(space: FakeActions) -> None:
    alice, bob = space.for_visitor(ALICE), space.for_visitor(BOB)
    request = TrainingRequest(name="The same")
    hers, again, his = alice.start(request), alice.start(request), bob.start(request)
    assert hers == again, "a double click"
    assert his != hers
    assert [run for run, _ in alice.runs()] == [hers]
    assert [run for run, _ in bob.runs()] == [his]
    assert space.for_visitor(ANONYMOUS).runs() == []


def test_an_action_checks_the_owner_of_the_run_that_it_is_given(space: FakeActions) -> None:
    """However a handler came by it."""
    hers = space.for_visitor(ALICE).start(TrainingRequest())
    bob = space.for_visitor(BOB)
    for act in (
        lambda: bob.stop(hers, True),
        lambda: bob.delete(hers),
        lambda: bob.rename(hers, "mine now"),
        lambda: bob.resume(hers),
        lambda: bob.send_control_request(hers, "save"),
        lambda: Actions.heldout_questions(bob, hers),
        lambda: Actions.compare(bob, hers, [Question(prompt="Who?")]),
        lambda: Actions.read_target(bob, hers, "bob/x"),
        lambda: Actions.publish(bob, hers, PushRequest(repo="bob/x")),
        lambda: Actions.publish(bob, hers, PushRequest(repo="bob/x", what="demo-space")),
        lambda: Actions.publish(bob, hers, PushRequest(repo="bob/x", what="merged")),
    ):
        with pytest.raises(RunError, match="There is no run"):
            act()
    assert hers.stop_request() is None


def test_a_new_sign_in_is_for_the_runs_of_who_signed_in(space: FakeActions) -> None:
    hers = space.for_visitor(ALICE).start(TrainingRequest())
    his = space.for_visitor(BOB).start(TrainingRequest())
    for visitor in (replace(ALICE, token="a2"), BOB, ANONYMOUS):
        space.for_visitor(visitor).renew_sign_in()
    assert space.backend.renewed == [({hers.id}, "a2"), ({his.id}, "b"), (set(), None)]


def test_a_run_made_from_anothers_run_does_not_name_it(space: FakeActions) -> None:
    hers = space.for_visitor(ALICE).start(TrainingRequest())
    his = space.for_visitor(BOB).start(TrainingRequest(), origin=hers.id)
    assert his.origin() is None
    assert not (his.path / "origin").exists()


def test_names_of_others_are_not_in_the_queue(space: FakeActions) -> None:
    alice, bob = space.for_visitor(ALICE), space.for_visitor(BOB)
    alice.start(TrainingRequest(name="secret plan"))
    assert "secret" not in bob.busy_name()
    assert not bob.queue_positions()


def test_a_visitor_has_so_many_runs_and_the_space_so_many(space: FakeActions) -> None:
    alice, bob = space.for_visitor(ALICE), space.for_visitor(BOB)
    for name in "ab":
        alice.start(TrainingRequest(name=name))
    with pytest.raises(RunError, match="may have 2"):
        alice.start(TrainingRequest(name="c"))
    bob.start(TrainingRequest(name="d"))
    with pytest.raises(RunError, match="as many as this Space takes"):
        bob.start(TrainingRequest(name="e"))


def test_a_run_of_somebody_else_takes_as_long_as_one_that_nobody_has(space: FakeActions) -> None:
    """Else the time would say that it is there. The calls take turns: a busy machine slows all of them."""
    alice, bob = space.for_visitor(ALICE), space.for_visitor(BOB)
    bob.start(TrainingRequest())
    first = alice.start(TrainingRequest())
    for digit in "23456789":  # a Space has more than one
        shutil.copytree(first.path, first.path.with_name(digit * 32))
    ids = {"foreign": first.id, "unknown": "0" * 32, "no id": "?" * 32}
    seconds: dict[str, list[float]] = {kind: [] for kind in ids}
    for _ in range(300):
        for kind, run_id in ids.items():
            began = time.perf_counter()
            with pytest.raises(RunError, match="There is no run"):
                bob.run(run_id)
            seconds[kind].append(time.perf_counter() - began)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    assert max(medians.values()) < 1.3 * min(medians.values()), medians


def test_an_upload_is_its_owners_and_its_id_means_nothing_to_others(
    space: FakeActions, tmp_path: Path
) -> None:
    alice, bob = space.for_visitor(ALICE), space.for_visitor(BOB)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "x"}\n')
    kept = keep_upload(alice, file)
    stored = Path(dataset_source(alice, kept))
    assert stored.read_text() == file.read_text()
    assert not Path(dataset_source(bob, kept)).exists()
    assert form_value(alice, str(stored)) == kept
    with pytest.raises(RequestError, match="a path on the server"):
        Actions._check_source(bob, str(stored), "dataset")
    file.write_text("x" * 2000)
    with pytest.raises(DiskFull, match="more than"):
        keep_upload(alice, file)


def test_prepared_data_is_shared_with_nobody(tmp_path: Path) -> None:
    home = Home(tmp_path)
    folders = [home.prepared_folder(owner) for owner in (LOCAL, "hub:alice", "hub:bob")]
    assert len(set(folders)) == 3
    assert folders[0] == tmp_path / "prepared"


@pytest.mark.parametrize("what", ["dataset", "base", "start", "upload", "search"])
def test_nobody_sees_the_demo_and_is_asked_to_sign_in_for_all_else(
    tmp_path: Path, what: str
) -> None:
    nobody = Actions(Settings(home=tmp_path, is_space=True))
    acts = {
        "dataset": lambda: nobody.inspect(TrainingRequest(dataset="alice/data")),
        "base": lambda: nobody.base_facts(TrainingRequest(base="alice/base")),
        "start": lambda: nobody.start(TrainingRequest()),
        "upload": lambda: nobody.check_upload(10),
        "search": lambda: nobody.search_datasets("al"),
    }
    with pytest.raises(RequestError, match="Sign in to"):
        acts[what]()


def test_off_a_space_this_machines_user_has_no_limits(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, limits=Limits(live_runs=1, min_free_gib=1e9))
    actions = FakeActions(settings, step_seconds=30.0, num_steps=5)
    assert actions.visitor == THIS_MACHINE
    for name in "abc":
        actions.start(TrainingRequest(name=name))
    assert len(actions.runs()) == 3
