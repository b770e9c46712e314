"""What a visitor's sign-in allows, and how long: an OAuth token has scopes and an end, and is never renewed."""

from datetime import UTC, datetime

from qlora_space.core.wording import rough_duration

_MAY_CREATE = {"contribute-repos", "write-repos", "manage-repos"}


def may_create_repos(scope: str) -> bool:
    """Whether a token of these scopes, parted by spaces, can create a private copy of a run, or publish one."""
    return not _MAY_CREATE.isdisjoint(scope.split())


def expiry_warning(
    expires_at: float | None, planned_seconds: float, now: float, uses: tuple[str, ...] = ()
) -> str:
    """What is lost if the run, from now until its planned end, outlives the sign-in; '' if it does not.

    `expires_at` and `now` in seconds since the epoch; None: the token has no end. `uses`: what the run does with
    the token while it trains or when it is done, for example 'the copy on the Hub'.
    """
    if expires_at is None or now + planned_seconds <= expires_at:
        return ""
    end = datetime.fromtimestamp(expires_at, UTC)
    left = rough_duration(max(0.0, expires_at - now))
    lost = f"{' and '.join(uses)} then stop{'s' if len(uses) == 1 else ''}; " if uses else ""
    return (
        f"Your sign-in ends in {left} ({end:%d %B %H:%M} UTC), before this run, which takes about "
        f"{rough_duration(planned_seconds)}: {lost}training goes on and the adapter is kept here. "
        "Sign out and in again before you start, or while it trains: the run goes on with the new sign-in."
    )
