"""Who asks: made once, where a request enters, and the only thing that decides what exists for it."""

import hashlib
import time
from dataclasses import dataclass, field

LOCAL = "local"  # this machine's user, who owns everything off a Space


@dataclass(frozen=True)
class Visitor:
    """`subject` is the account's id at the Hub (OAuth's `sub`), LOCAL off a Space, '' for nobody signed in.

    `token`: theirs, never this machine's. `expires_at`: seconds since the epoch, None if it does not expire. `name`: of
    the account, '' where no sign-in says it; `scope`: what the sign-in allows, as OAuth writes it.
    `gpu_token`: whose quota pays for time on ZeroGPU, as the platform says with each request.
    """

    subject: str = ""
    token: str | None = field(default=None, repr=False)
    expires_at: float | None = None
    name: str = ""
    scope: str = ""
    gpu_token: str = field(default="", repr=False)

    @property
    def is_anonymous(self) -> bool:
        return not self.subject


ANONYMOUS = Visitor()
THIS_MACHINE = Visitor(LOCAL)


def from_session(session: object) -> Visitor:
    """Who the cookie of a Space's session says it is; ANONYMOUS for none, an expired one, or one of another form.

    The session is signed with the Space's OAuth secret before it comes here.
    """
    info = session.get("oauth_info") if isinstance(session, dict) else None
    if not isinstance(info, dict):
        return ANONYMOUS
    user, token, expires_at = (info.get(key) for key in ("userinfo", "access_token", "expires_at"))
    subject = user.get("sub") if isinstance(user, dict) else None
    if not (isinstance(subject, str) and subject and isinstance(token, str) and token):
        return ANONYMOUS
    if not isinstance(expires_at, (int, float)) or expires_at <= time.time():
        return ANONYMOUS
    name, scope = user.get("preferred_username"), info.get("scope")  # type: ignore[union-attr]
    return Visitor(
        hub_subject(subject),
        token,
        float(expires_at),
        name if isinstance(name, str) else "",
        scope if isinstance(scope, str) else "",
    )


def hub_subject(account_id: str) -> str:
    """The subject of an account at the Hub, which no subject of this machine equals."""
    return f"hub:{account_id}"


def folder_name(subject: str) -> str:
    """A folder's name for an owner: user text never becomes a path."""
    return hashlib.sha256(subject.encode()).hexdigest()[:32]
