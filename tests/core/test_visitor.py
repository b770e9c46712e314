"""Who a session's cookie says it is."""

import time

import pytest

from qlora_space.core.visitor import ANONYMOUS, LOCAL, Visitor, folder_name, from_session


def session_of(**changes: object) -> dict:
    info = {
        "userinfo": {"sub": "42", "preferred_username": "alice"},
        "access_token": "secret-token",
        "expires_at": time.time() + 60,
    }
    return {"oauth_info": info | changes}


def test_the_subject_is_the_accounts_id_and_never_this_machines_user() -> None:
    visitor = from_session(session_of())
    assert visitor.subject == "hub:42"
    assert visitor.token == "secret-token"
    assert from_session(session_of(userinfo={"sub": LOCAL})).subject != LOCAL


@pytest.mark.parametrize(
    "session",
    [
        None,
        {},
        [],
        {"oauth_info": "x"},
        session_of(expires_at=time.time() - 1),
        session_of(expires_at=None),
        session_of(expires_at="later"),
        session_of(userinfo=None),
        session_of(userinfo={"sub": ""}),
        session_of(userinfo={"sub": 7}),
        session_of(access_token=""),
        session_of(access_token=None),
    ],
)
def test_an_expired_session_or_one_of_another_form_is_nobody(session: object) -> None:
    assert from_session(session) == ANONYMOUS


def test_a_token_is_not_in_what_is_printed() -> None:
    assert "secret-token" not in repr(Visitor("hub:42", "secret-token"))


@pytest.mark.parametrize("subject", ["../../etc", "hub:42", "hub:" + "x" * 9999, "a/b", "\0"])
def test_a_folders_name_holds_nothing_of_the_subject(subject: str) -> None:
    name = folder_name(subject)
    assert len(name) == 32
    assert set(name) <= set("0123456789abcdef")
