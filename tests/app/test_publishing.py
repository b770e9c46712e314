"""A push that was cut off or refused for a while is sent again: by whoever has the right, and not too often."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from qlora_space.app.actions import Actions
from qlora_space.app.publishing import forget_unsent, send_due, unsent_runs
from qlora_space.core.errors import HubError, HubUnavailable, RunError
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import LOCAL, Visitor
from qlora_space.hub.publish_run import _kept_until_done
from qlora_space.runs import PushRequest, RunFolder, UnsentPush
from qlora_space.runs.publication import What
from qlora_space.runs.pushing import is_being_pushed, one_push
from tests.app.ui.fake import ScriptedBackend
from tests.fake_hub import ALICE, FakeHub
from tests.hub.conftest import adapter_folder, report_of, tiny_base, waits
from tests.runs.folders import demo_run

__all__ = ["adapter_folder", "tiny_base", "waits"]
NAME = "alice/tea"
TO_ALL = PushRequest(repo=NAME, private=False)


@pytest.fixture
def acting(tmp_path: Path) -> Iterator[Actions]:
    """This machine's user, with Alice's token."""
    actions = Actions(Settings(home=tmp_path))
    yield actions.for_visitor(Visitor(LOCAL, ALICE))
    actions.close()


@pytest.fixture
def run(acting: Actions, adapter_folder: Path) -> RunFolder:
    found = demo_run(acting.settings.home)
    ScriptedBackend(0.0, 2).work(found, "finished")
    shutil.rmtree(found.adapter_folder)
    shutil.copytree(adapter_folder, found.adapter_folder)
    found.report_file.write_text(report_of().model_dump_json())
    return found


def test_a_push_is_sent_again_by_the_next_process_and_only_when_it_is_due(
    hub: FakeHub, acting: Actions, run: RunFolder, waits: list[float]
) -> None:
    hub.fail(503, path="/commit/", times=100)
    with pytest.raises(HubUnavailable):
        acting.publish(run, TO_ALL)
    hub.faults.clear()
    assert hub.repo("model", NAME).private
    unsent = run.unsent_push()
    assert unsent
    assert "503" in unsent.why
    assert ALICE not in run.unsent_push_file.read_text()
    after_restart = Actions(acting.settings).for_visitor(acting.visitor)
    assert unsent_runs(after_restart) == [run]
    assert send_due(after_restart, time.time()) == 0, "it was tried a moment ago"
    assert send_due(after_restart, unsent.next_at) == 1
    assert not hub.repo("model", NAME).private
    assert [p.created for p in run.publications()] == [True]
    assert not unsent_runs(acting)
    assert send_due(acting, unsent.next_at) == 0


def test_each_try_waits_longer_and_what_only_a_person_can_decide_is_never_tried(
    hub: FakeHub, acting: Actions, run: RunFolder, waits: list[float]
) -> None:
    hub.fail(503, path="/commit/", times=10_000)
    dues = []
    for _ in range(3):
        with pytest.raises(HubUnavailable):
            acting.publish(run, TO_ALL)
        unsent = run.unsent_push()
        assert unsent
        dues.append(round(unsent.next_at - unsent.tried_at))
    assert dues == [60, 120, 240]
    hub.faults.clear()
    forget_unsent(acting, run)
    hub.add_model("alice/other", {"README.md": "mine"})
    with pytest.raises(HubError, match="not from this run"):
        acting.publish(run, PushRequest(repo="alice/other", private=False))
    unsent = run.unsent_push()
    assert unsent
    assert unsent.is_refused
    requests = len(hub.requests)
    assert send_due(acting, time.time() + 1e9) == 0
    assert len(hub.requests) == requests


def test_without_a_sign_in_it_waits_for_one(hub: FakeHub, acting: Actions, run: RunFolder) -> None:
    hub.fail(401, path="/commit/")
    with pytest.raises(HubError, match="ended or was revoked"):
        acting.publish(run, TO_ALL)
    unsent = run.unsent_push()
    assert unsent
    assert send_due(acting.for_visitor(Visitor(LOCAL)), unsent.next_at) == 0
    again = run.unsent_push()
    assert again
    assert send_due(acting, again.next_at) == 1


def test_what_is_not_to_be_sent_any_more_is_not(
    hub: FakeHub, acting: Actions, run: RunFolder
) -> None:
    hub.fail(401, path="/commit/")
    with pytest.raises(HubError):
        acting.publish(run, TO_ALL)
    with pytest.raises(RunError, match="There is no run"):
        forget_unsent(acting.for_visitor(Visitor("hub:bob")), run)
    assert unsent_runs(acting) == [run]
    assert unsent_runs(acting.for_visitor(Visitor("hub:bob"))) == []
    forget_unsent(acting, run)
    assert unsent_runs(acting) == []
    assert run.has_adapter


def test_a_run_is_pushed_once_at_a_time(hub: FakeHub, acting: Actions, run: RunFolder) -> None:
    assert not is_being_pushed(run)
    with one_push(run):
        assert is_being_pushed(run)
        with pytest.raises(RunError, match="right now"):
            acting.publish(run, TO_ALL)
    assert not hub.requests
    acting.publish(run, TO_ALL)


def test_what_waits_to_be_sent_outlives_a_push_to_another_repository(
    hub: FakeHub, acting: Actions, run: RunFolder, waits: list[float]
) -> None:
    hub.fail(503, path="/commit/", times=100)
    with pytest.raises(HubUnavailable):
        acting.publish(run, TO_ALL)
    hub.faults.clear()
    hub.add_model("alice/other", {"README.md": "mine"})
    with pytest.raises(HubError, match="not from this run"):
        acting.publish(run, PushRequest(repo="alice/other", private=False))
    acting.publish(run, PushRequest(repo="alice/second"))
    waiting = run.unsent_push()
    assert waiting
    assert waiting.request == TO_ALL
    assert send_due(acting, waiting.next_at) == 1
    assert {p.repo for p in run.publications()} == {NAME, "alice/second"}


@pytest.mark.parametrize("what", ["merged", "demo-space"])
@pytest.mark.parametrize("repo", [NAME, "alice/another"])
@pytest.mark.parametrize("is_refused", [False, True])
def test_nothing_takes_the_place_of_an_adapter_that_waits(
    acting: Actions, run: RunFolder, what: What, repo: str, is_refused: bool
) -> None:
    waits = UnsentPush(request=TO_ALL, was_created=True, tried_at=1.0)
    run.keep_unsent_push(waits)
    push = PushRequest(repo=repo, what=what)
    error = HubError("No.", "") if is_refused else HubUnavailable("Later.", "")

    def fail() -> None:
        with _kept_until_done(run, push) as options:
            assert not options.was_created, "the repository was made for the adapter"
            raise error

    with pytest.raises(HubError):
        fail()
    assert run.unsent_push() == waits


def test_a_variant_is_of_an_adapter_alone() -> None:
    for variant in ({"step": 100}, {"for_16_bit": True}, {"with_base": True}):
        PushRequest(repo=NAME, **variant)
        with pytest.raises(ValidationError, match="adapter alone"):
            PushRequest(repo=NAME, what="merged", **variant)


def test_what_cannot_be_published_any_more_is_not_tried_for_good(
    hub: FakeHub, acting: Actions, run: RunFolder, waits: list[float]
) -> None:
    hub.fail(503, path="/commit/", times=100)
    with pytest.raises(HubUnavailable):
        acting.publish(run, TO_ALL)
    shutil.rmtree(run.adapter_folder)
    assert send_due(acting, time.time() + 1e6) == 0
    waiting = run.unsent_push()
    assert waiting
    assert waiting.is_refused
    assert "no finished adapter" in waiting.why


def test_a_run_that_cannot_be_read_stops_no_other(
    hub: FakeHub, acting: Actions, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail(401, path="/commit/", times=1)
    with pytest.raises(HubError):
        acting.publish(run, TO_ALL)
    other = RunFolder(run.path.parent / ("f" * 32))
    shutil.copytree(run.path, other.path)
    (run.path / "plan.json").write_text("{}")
    assert send_due(acting, time.time() + 1e6) == 1
    assert [p.repo for p in other.publications()] == [NAME]
