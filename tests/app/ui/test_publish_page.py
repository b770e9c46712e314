"""The checklist: what must be true before anything is uploaded, and what a person should read."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_space.app.ui.checklist import Destination, begun, checklist, is_complete
from qlora_space.app.ui.pieces import Snapshot, shared_pieces, status_pieces
from qlora_space.app.ui.render.html import run_list
from qlora_space.app.ui.render.publish import published_line, render_checklist, unsent
from qlora_space.core.settings import Settings
from qlora_space.hub import Target
from qlora_space.hub.account import Account
from qlora_space.plan import Plan
from qlora_space.runs import Publication, PushRequest, RunFolder, UnsentPush, view_of
from tests.app.ui.fake import FakeActions, scripted_run

ADA = Account(name="ada", orgs=(), can_write=True)
FREE = Destination("ada/tea", ADA, Target("free"))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    actions = FakeActions(Settings(home=tmp_path), user=ADA, step_seconds=0, num_steps=20)
    yield scripted_run(actions, "Tea", "finished")
    actions.close()


def licensed(run: RunFolder, license: str, source: str = "hub") -> RunFolder:
    plan = run.plan()
    base = plan.base.model_copy(update={"license": license, "source": source})
    changed: Plan = plan.model_copy(update={"base": base})
    (run.path / "plan.json").write_text(changed.model_dump_json())
    return RunFolder(run.path)


@pytest.mark.parametrize(
    ("license", "source", "state", "words"),
    [
        ("apache-2.0", "hub", "ok", "allows it: apache-2.0"),
        ("", "demo", "ok", "allows it: apache-2.0"),
        ("llama3.1", "hub", "note", "(llama3.1) has conditions"),
        ("", "hub", "note", "states no licence"),
        ("", "local", "note", "states no licence"),
    ],
)
def test_the_licence_of_the_base_is_told_and_left_to_the_person(
    run: RunFolder, license: str, source: str, state: str, words: str
) -> None:
    checks = checklist(FREE, licensed(run, license, source), is_space=False)
    (found,) = [check for check in checks if "licence" in check.text]
    assert found.state == state
    assert words in found.text
    assert is_complete(checks)
    assert words in render_checklist(checks)


def test_what_somebody_changed_on_the_hub_keeps_the_button_shut_until_a_person_decides(
    run: RunFolder,
) -> None:
    changed = Destination("ada/tea", ADA, Target("ours", changed=("README.md",)))
    assert not is_complete(checklist(changed, run, is_space=False))
    replacing = checklist(replace(changed, replaces=True), run, is_space=False)
    assert is_complete(replacing)
    assert "will be replaced: README.md" in render_checklist(replacing)


def test_a_repository_that_an_earlier_try_made_counts_as_new(run: RunFolder) -> None:
    ours = Destination("ada/tea", ADA, Target("ours", is_private=True))
    assert not begun(ours, run).is_new
    push = PushRequest(repo="ada/tea", private=False)
    run.keep_unsent_push(UnsentPush(request=push, was_created=True, tried_at=1.0))
    assert begun(ours, run).is_new
    assert not begun(replace(ours, repo="ada/other"), run).is_new
    assert not begun(replace(ours, target=Target("foreign")), run).is_new


def test_a_push_that_is_not_done_says_why_and_what_comes(run: RunFolder) -> None:
    push = UnsentPush(request=PushRequest(repo="ada/tea"), tried_at=100.0, why="503 <b>")
    assert "503 &lt;b&gt;" in unsent(push, 110.0, False)
    assert "again in 50 s" in unsent(push, 110.0, False)
    assert "again in a moment" in unsent(push, 900.0, False)
    assert "Sending" in unsent(push, 900.0, True)
    refused = push.model_copy(update={"is_refused": True})
    assert "again" not in unsent(refused, 900.0, False)
    assert "stopped while it was being sent" in unsent(
        push.model_copy(update={"why": ""}), 1.0, False
    )
    assert unsent(None, 1.0, False) == ""


def test_the_list_and_the_page_of_a_run_say_where_it_was_published(run: RunFolder) -> None:
    view = view_of(run)
    names = {run.id: "Tea"}
    assert "ublished" not in run_list([(run, view)], names)
    assert published_line(run) == ""
    run.keep_unsent_push(UnsentPush(request=PushRequest(repo="ada/tea"), tried_at=1.0))
    assert "Not published yet" in run_list([(run, view)], names)
    run.forget_unsent_push()
    done = Publication(repo="ada/tea", url="u", commit="c", num_files=7, created=True, time=1.0)
    for repo in ("ada/<tea>", "ada/other", "ada/third"):
        run.add_publication(done.model_copy(update={"repo": repo}))
    assert "Published" in run_list([(run, view)], names)
    assert "ada/third</a>, and in 2 other repositories" in published_line(run)
    snapshot = Snapshot(run=run, name="Tea", plan=run.plan(), view=view, now=2.0)
    assert "ada/third" in status_pieces(snapshot)["run-outcome"]
    assert "ada/" not in "".join(shared_pieces(snapshot).values()), "guests see no repository"


def test_what_is_missing_or_still_asked_keeps_the_button_shut(run: RunFolder) -> None:
    for target in (None, Target("foreign")):
        assert not is_complete(checklist(Destination("ada/tea", ADA, target), run, is_space=False))
    assert not is_complete(checklist(Destination("ada/tea"), run, is_space=False))
