"""A run that outlives its sign-in is announced before it starts, with what is lost and what is not."""

import pytest

from qlora_space.hub.sign_in import expiry_warning, may_create_repos

NOW = 1_800_000_000.0
HOUR = 3600.0


@pytest.mark.parametrize(
    ("expires_at", "planned"),
    [(None, 1e9), (NOW + 2 * HOUR, HOUR), (NOW + HOUR, HOUR)],
    ids=["no end", "later", "just then"],
)
def test_a_run_that_ends_in_time_is_not_warned_of(expires_at: float | None, planned: float) -> None:
    assert expiry_warning(expires_at, planned, NOW, ("publishing",)) == ""


def test_a_longer_run_is_told_when_what_stops() -> None:
    said = expiry_warning(NOW + HOUR, 3 * HOUR, NOW, ("the copy on the Hub", "publishing"))
    assert said.startswith("Your sign-in ends in 1 h (15 January 09:00 UTC), before this run")
    assert "about 3 h: the copy on the Hub and publishing then stop; training goes on" in said
    assert "publishing then stops; training" in expiry_warning(NOW, HOUR, NOW, ("publishing",))


def test_a_run_that_needs_no_token_loses_nothing() -> None:
    assert "stop" not in expiry_warning(NOW + 1, HOUR, NOW)


@pytest.mark.parametrize(
    ("scope", "may"),
    [
        ("openid profile contribute-repos gated-repos", True),
        ("openid write-repos", True),
        ("openid profile read-repos", False),
        ("", False),
    ],
)
def test_only_a_scope_that_creates_repositories_allows_a_copy(scope: str, may: bool) -> None:
    assert may_create_repos(scope) is may
