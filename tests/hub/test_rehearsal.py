"""What publishing would meet is known before anything is trained, and nothing is written to find out."""

import pytest

from qlora_space.core.errors import HubUnavailable
from qlora_space.core.rehearsal import Rehearsal
from qlora_space.hub import Account, rehearse, suggested_repos
from tests.fake_hub import ALICE, BOB, FakeHub


def test_a_new_name_and_an_empty_repository_are_fine(hub: FakeHub) -> None:
    new = rehearse("tea", True, ALICE)
    assert new == Rehearsal(repo="alice/tea", state="new", is_private=True)
    assert new.in_words == "alice/tea: new repository, private"
    hub.add_model("wonderland/tea", {".gitattributes": ""}, private=True)
    empty = rehearse("wonderland/tea", True, ALICE)
    assert (empty.state, empty.problem) == ("empty", "")
    assert empty.in_words == "wonderland/tea: your empty repository, private"
    assert {r.method for r in hub.requests} == {"GET"}
    assert list(hub.repos) == [("model", "wonderland/tea")]


def test_a_name_that_is_taken_comes_with_a_free_one(hub: FakeHub) -> None:
    for name in ("tea", "tea-2"):
        hub.add_model(f"alice/{name}", {"README.md": "mine"}, private=True)
    taken = rehearse("alice/tea", True, ALICE)
    assert taken.state == "refused"
    assert taken.problem == "alice/tea holds files of something else."
    assert "alice/tea-3, which is free" in taken.fix


@pytest.mark.parametrize(
    ("repo", "token", "problem"),
    [
        ("alice/new", None, "needs a Hub account"),
        ("alice/new", "hf_unknown", "does not know this token"),
        ("bob/new", BOB, "may only read"),
        ("bob/new", ALICE, "may not write to 'bob'"),
        ("alice/a b", ALICE, "cannot be the name"),
        ("alice/open", ALICE, "everyone can read it"),
    ],
)
def test_what_would_be_refused_is_a_sentence_with_what_to_do(
    hub: FakeHub, repo: str, token: str | None, problem: str
) -> None:
    hub.add_model("alice/open", {})
    found = rehearse(repo, True, token)
    assert found.state == "refused"
    assert problem in found.problem
    assert found.fix


def test_a_hub_that_does_not_answer_is_not_taken_for_a_refusal(hub: FakeHub) -> None:
    for path in ("/whoami-v2", "/auth-check", "/api/models/alice/tea$"):
        hub.fail(503, path=path, times=9)
        with pytest.raises(HubUnavailable):
            rehearse("alice/tea", True, ALICE)
        hub.faults.clear()


def test_names_are_made_of_base_and_dataset_under_each_owner_that_may_be_written_to() -> None:
    ada = Account("ada", ("acme",), can_write=True)
    assert suggested_repos(ada, "Qwen/Qwen3-0.6B", "trl-lib/Capybara") == (
        "ada/qwen3-0-6b-capybara-qlora",
        "acme/qwen3-0-6b-capybara-qlora",
    )
    assert suggested_repos(ada, "demo", "../ü")[0] == "ada/demo-qlora"
    assert suggested_repos(ada, "", "")[0] == "ada/adapter-qlora"
    assert len(suggested_repos(ada, "x" * 300, "y")[0]) < 96
    assert suggested_repos(Account("bob", (), can_write=False), "demo", "demo") == ()
    assert suggested_repos(None, "demo", "demo") == ()
