"""Whose token it is, and whether it may publish. Tokens are passed on and never kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import get_token
from huggingface_hub.errors import RepositoryNotFoundError

from qlora_space.core.errors import HubError, NotSignedIn
from qlora_space.hub.connection import (
    CLIENT_ERRORS,
    SIGN_IN_AGAIN,
    hub_api,
    hub_error,
    is_repo_id,
    status_of,
)


@dataclass(frozen=True)
class Account:
    """Who is logged in. `orgs`: the organizations that they may write to. `id`: of the account, as OAuth's `sub`."""

    name: str
    orgs: tuple[str, ...]
    can_write: bool
    id: str = ""


def local_token() -> str | None:
    """The token that huggingface_hub keeps for this machine's user, if any."""
    return get_token()


def read_account(token: str | None) -> Account | None:
    """Whose token it is; None for no token or an unknown one. Raises HubError if the Hub does not answer."""
    if not token or not token.strip():
        return None
    try:
        answer = hub_api(token).whoami()
    except CLIENT_ERRORS as error:
        if status_of(error) == 401:
            return None
        raise hub_error(error, "The account could not be read") from None
    return Account(
        name=answer["name"],
        orgs=tuple(o["name"] for o in answer.get("orgs") or () if o.get("roleInOrg") != "read"),
        can_write=_can_write(answer.get("auth") or {}),
        id=str(answer.get("id") or ""),
    )


def _can_write(auth: Mapping[str, Any]) -> bool:
    """A write role, or a fine-grained token with repo.write anywhere. An OAuth token does not say."""
    token = auth.get("accessToken") or {}
    if token.get("role") == "read":
        return False
    if token.get("role") != "fineGrained":
        return True
    fine = token.get("fineGrained") or {}
    scoped = [p for scope in fine.get("scoped") or () for p in scope.get("permissions") or ()]
    return "repo.write" in [*scoped, *(fine.get("global") or ())]


def check_can_publish(repo: str, token: str | None) -> None:
    """Check before training what would fail after it. Raises HubError that says what is missing."""
    full_name_to_publish(repo, token)


def full_name_to_publish(repo: str, token: str | None, repo_type: str = "model") -> str:
    """The repository's name with its owner. Raises HubError as check_can_publish does."""
    account = read_account(token)
    _refuse_account(account, has_token=bool(token))
    assert account is not None
    if not is_repo_id(repo):
        raise HubError(
            f"{repo[:100]!r} cannot be the name of a repository.",
            "Use letters, digits, '-', '_' and '.', as in your-name/my-adapter.",
        )
    full_name = repo if "/" in repo else f"{account.name}/{repo}"
    owner = full_name.split("/")[0]
    if owner not in (account.name, *account.orgs):
        writable = ", ".join((account.name, *account.orgs))
        raise HubError(
            f"{account.name} may not write to {owner!r}.", f"Choose a name under: {writable}."
        )
    _refuse_existing(full_name, token, repo_type)
    return full_name


def _refuse_account(account: Account | None, has_token: bool) -> None:
    if account is None and has_token:
        raise NotSignedIn("The Hub does not know this token.", SIGN_IN_AGAIN)
    if account is None:
        raise NotSignedIn("Publishing needs a Hub account.", "Log in with a token that may write.")
    if not account.can_write:
        raise HubError(
            f"The token of {account.name} may only read.",
            "Make one with write rights in the Hub's settings and log in with it.",
        )


def _refuse_existing(repo: str, token: str | None, repo_type: str) -> None:
    """Raises HubError if the repository is there and this token may not write to it."""
    try:
        is_writable = may_write(repo, token, repo_type)
    except RepositoryNotFoundError:
        return
    except CLIENT_ERRORS as error:
        raise hub_error(error, f"{repo} could not be checked") from None
    if not is_writable:
        raise HubError(f"{repo} exists and this token may not write to it.", "Choose another name.")


def may_write(repo: str, token: str | None, repo_type: str = "model") -> bool:
    """Whether this token may write to that repository. Raises the client's own errors."""
    try:
        hub_api(token).auth_check(repo, repo_type=repo_type, write=True)
    except RepositoryNotFoundError:
        raise
    except CLIENT_ERRORS as error:
        if status_of(error) == 403:
            return False
        raise
    return True


def is_repo_name(repo: str) -> bool:
    """Whether the Hub takes it as 'owner/name'."""
    return repo.count("/") == 1 and is_repo_id(repo)
