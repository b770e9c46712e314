"""What publishing would meet, asked once for a page's keystrokes."""

import threading
import time
from collections.abc import Callable

from qlora_space import hub
from qlora_space.app.token_owners import token_hash
from qlora_space.core.rehearsal import Rehearsal
from qlora_space.core.request import TrainingRequest

_SECONDS, _MOST = 20.0, 64
_Key = tuple[str, bool, str]


class Rehearsals:
    """Those of the last seconds, of all visitors; each is found with its visitor's token only, kept as a hash."""

    def __init__(self, ask: Callable[..., Rehearsal] = hub.rehearse) -> None:
        self._ask = ask
        self._known: dict[_Key, tuple[float, Rehearsal]] = {}
        self._changing = threading.Lock()

    def of(self, request: TrainingRequest, token: str | None) -> Rehearsal | None:
        """None: nothing is to be published. Raises HubUnavailable if the Hub does not answer."""
        repo = request.hub_model_id
        if not repo:
            return None
        key = (repo, request.hub_private_repo, token_hash(token))
        until, found = self._known.get(key, (0.0, None))
        if found is None or time.monotonic() > until:
            found = self._ask(repo, request.hub_private_repo, token)
            with self._changing:
                if len(self._known) >= _MOST:
                    self._known.clear()
                self._known[key] = (time.monotonic() + _SECONDS, found)
        return found

    def forget(self, token: str | None) -> None:
        """Before a visitor's run is started everything of theirs is asked anew."""
        mine = token_hash(token)
        with self._changing:
            self._known = {key: found for key, found in self._known.items() if key[2] != mine}
