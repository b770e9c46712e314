"""Whose token it is, and whether it may publish. Tokens are passed on and never kept."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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

_WRITE = "repo.write"


@dataclass(frozen=True)
class Account:
    """Who is logged in. `orgs`: the organizations that the token may write to; `repos`: single repositories that it
    may, where it may only these; `is_own`: under their own name too. `id`: of the account, as OAuth's `sub`."""

    name: str
    orgs: tuple[str, ...]
    can_write: bool
    id: str = ""
    is_own: bool = True
    repos: tuple[str, ...] = ()

    @property
    def owners(self) -> tuple[str, ...]:
        """Under which the token may make repositories."""
        return (*((self.name,) if self.is_own else ()), *self.orgs)


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
    name = answer["name"]
    orgs = tuple(o["name"] for o in answer.get("orgs") or () if o.get("roleInOrg") != "read")
    access = (answer.get("auth") or {}).get("accessToken") or {}
    id, role = str(answer.get("id") or ""), access.get("role")
    known = Account(name, orgs, can_write=role != "read", id=id)
    return _narrowed(known, access) if role == "fineGrained" else known


def _narrowed(account: Account, token: Mapping[str, Any]) -> Account:
    """To what a fine-grained token may write. An OAuth token does not say."""
    fine = token.get("fineGrained") or {}
    if _WRITE in (fine.get("global") or ()):
        return account
    entities = [
        scope.get("entity") or {}
        for scope in fine.get("scoped") or ()
        if _WRITE in (scope.get("permissions") or ())
    ]
    names = {(entity.get("type"), entity.get("name")) for entity in entities}
    return replace(
        account,
        can_write=bool(entities),
        is_own=("user", account.name) in names,
        orgs=tuple(org for org in account.orgs if ("org", org) in names),
        repos=tuple(sorted(str(name) for kind, name in names if kind in ("model", "space"))),
    )


def full_name_to_publish(repo: str, token: str | None, repo_type: str = "model") -> str:
    """The repository's name with its owner. Raises HubError that says what is missing: before training, what would
    fail after it."""
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
    if owner not in account.owners and full_name not in account.repos:
        may_not = (
            f"The token of {account.name}"
            if owner in (account.name, *account.orgs)
            else account.name
        )
        raise HubError(
            f"{may_not} may not write to {owner!r}.",
            f"Choose a name under: {', '.join((*account.owners, *account.repos))}.",
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
