"""Who is logged in, and which pushes are refused before training instead of failing after it."""

import pytest

from qlora_space.core.errors import HubError
from qlora_space.hub import Account, local_token, read_account
from qlora_space.hub.account import full_name_to_publish
from tests.fake_hub import ALICE, BOB, CAROL, FakeHub, User


def test_an_account_says_where_it_may_write(hub: FakeHub) -> None:
    assert read_account(ALICE) == Account("alice", ("wonderland",), True, "alice")
    assert read_account(BOB) == Account("bob", (), False, "bob")
    assert read_account(CAROL) == Account("carol", (), False, "carol", is_own=False)


def test_a_fine_grained_token_with_write_may_write(hub: FakeHub) -> None:
    hub.users["hf_dora"] = User("dora", "fineGrained", permissions=("repo.write",))
    account = read_account("hf_dora")
    assert account is not None
    assert account.can_write


def test_a_fine_grained_token_may_write_where_its_scopes_say(hub: FakeHub) -> None:
    orgs = ("makers", "bakers")
    write, read = ("repo.write", "repo.content.read"), ("repo.content.read",)
    scopes = {("org", "makers"): write, ("org", "bakers"): read, ("model", "dora/one"): write}
    hub.users["hf_dora"] = User("dora", "fineGrained", orgs=orgs, scopes=scopes)
    account = read_account("hf_dora")
    assert account is not None
    assert (account.owners, account.repos) == (("makers",), ("dora/one",))
    assert full_name_to_publish("makers/new", "hf_dora") == "makers/new"
    assert full_name_to_publish("dora/one", "hf_dora") == "dora/one"
    for repo in ("dora/new", "bakers/new"):
        with pytest.raises(HubError, match="dora may not write to") as refused:
            full_name_to_publish(repo, "hf_dora")
        assert refused.value.hint == "Choose a name under: makers, dora/one."


def test_an_org_with_read_access_cannot_be_published_to(hub: FakeHub) -> None:
    hub.users["hf_dora"] = User("dora", "write", orgs=("makers",), orgs_to_read=("readers",))
    assert read_account("hf_dora") == Account("dora", ("makers",), True, "dora")
    with pytest.raises(HubError, match="may not write to 'readers'"):
        full_name_to_publish("readers/new", "hf_dora")


@pytest.mark.parametrize("token", [None, "", "  ", "hf_unknown"])
def test_no_token_and_an_unknown_one_are_no_account(hub: FakeHub, token: str | None) -> None:
    assert read_account(token) is None


def test_the_local_token_is_huggingface_hubs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_token() is None
    monkeypatch.setenv("HF_TOKEN", "hf_local")
    assert local_token() == "hf_local"


def test_a_pasted_newline_is_ignored_and_characters_of_no_token_are_refused(hub: FakeHub) -> None:
    assert read_account(f" {ALICE}\n") is not None
    for token in ("hf_caf\u00e9secret", "hf_one\nhf_two", "hf_a b"):
        with pytest.raises(HubError, match="characters that no token has") as refused:
            read_account(token)
        assert token not in repr(refused.value)


@pytest.mark.parametrize("repo", ["alice/new", "wonderland/new", "new", "alice/mine"])
def test_names_that_may_be_published_pass(hub: FakeHub, repo: str) -> None:
    hub.add_model("alice/mine", {"a.txt": "x"}, private=True)
    full_name_to_publish(repo, ALICE)


@pytest.mark.parametrize(
    ("repo", "token", "sentence"),
    [
        ("alice/new", None, "needs a Hub account"),
        ("alice/new", "hf_unknown", "does not know this token"),
        ("bob/new", BOB, "bob may only read"),
        ("carol/new", CAROL, "carol may only read"),
        ("bob/new", ALICE, "may not write to 'bob'.*alice, wonderland"),
        ("alice/a b", ALICE, "cannot be the name"),
        ("alice/../x", ALICE, "cannot be the name"),
        ("alice/x/y", ALICE, "cannot be the name"),
        ("", ALICE, "cannot be the name"),
    ],
)
def test_one_sentence_names_what_is_missing(
    hub: FakeHub, repo: str, token: str | None, sentence: str
) -> None:
    with pytest.raises(HubError, match=sentence) as refused:
        full_name_to_publish(repo, token)
    assert refused.value.hint
    assert token is None or token not in repr(refused.value)


def test_an_existing_repository_that_refuses_this_token_is_detected(hub: FakeHub) -> None:
    hub.add_model("alice/mine", {"a.txt": "x"})
    hub.fail(403, path="/auth-check/write")
    with pytest.raises(HubError, match="may not write to it"):
        full_name_to_publish("alice/mine", ALICE)


@pytest.mark.parametrize("kind", [429, 500, "drop"])
def test_a_hub_that_fails_is_a_hub_error(hub: FakeHub, kind: int | str) -> None:
    for path in ("/whoami-v2", "/auth-check"):
        hub.reset()
        hub.fail(kind, path=path, times=9)
        with pytest.raises(HubError, match="could not be"):
            full_name_to_publish("alice/new", ALICE)


def test_checking_creates_nothing(hub: FakeHub) -> None:
    full_name_to_publish("alice/new", ALICE)
    assert hub.repos == {}
    assert {r.method for r in hub.requests} == {"GET"}
