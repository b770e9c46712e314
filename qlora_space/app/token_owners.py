"""Whose the tokens are that programs pass. A token itself is never kept, only its hash for some minutes."""

import hashlib
import threading
import time

from qlora_space import hub
from qlora_space.core.errors import RequestError
from qlora_space.core.visitor import Visitor, hub_subject

_MOST, _SECONDS = 1024, 300.0  # then a token is looked up again


def token_hash(token: str | None) -> str:
    """By which something is found for who has the token."""
    return hashlib.sha256((token or "").encode()).hexdigest()


class TokenOwners:
    """Asked for each request of a program, which makes many."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, float]] = {}  # by hash: subject, and until when
        self._changing = threading.Lock()

    def visitor(self, token: str) -> Visitor:
        """Raises RequestError for an unknown token, HubError if the Hub does not answer."""
        key = token_hash(token)
        subject, until = self._known.get(key, ("", 0.0))
        if time.monotonic() > until:
            account = hub.read_account(token)
            if account is None or not account.id:
                raise RequestError("The Hub does not know this token.", "Make a new one.")
            subject = hub_subject(account.id)
            with self._changing:
                if len(self._known) >= _MOST:
                    self._known.pop(next(iter(self._known)))
                self._known[key] = (subject, time.monotonic() + _SECONDS)
        return Visitor(subject, token)
