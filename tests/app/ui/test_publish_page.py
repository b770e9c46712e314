"""The checklist: what must be true before anything is uploaded, and what a person should read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_space.app.ui.publish_page import Destination, checklist, is_complete, render_checklist
from qlora_space.core.settings import Settings
from qlora_space.hub import Target
from qlora_space.hub.account import Account
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder
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


def test_what_is_missing_or_still_asked_keeps_the_button_shut(run: RunFolder) -> None:
    for target in (None, Target("foreign")):
        assert not is_complete(checklist(Destination("ada/tea", ADA, target), run, is_space=False))
    assert not is_complete(checklist(Destination("ada/tea"), run, is_space=False))
