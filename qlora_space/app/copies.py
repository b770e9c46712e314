"""Copies of runs on the visitor's account: a Space loses its disk when it restarts, and the runs on it."""

from qlora_space import hub
from qlora_space.app.actions import Actions


def may_keep_copies(acting: Actions) -> bool:
    """Whether a run that this visitor starts can be copied to their account while it trains."""
    visitor = acting.visitor
    return acting.settings.is_space and bool(visitor.name) and hub.may_create_repos(visitor.scope)


def copies_not_here(acting: Actions) -> list[hub.MirroredRun]:
    """The visitor's copies of runs that this machine does not have, newest first. Raises HubError."""
    visitor = acting.visitor
    if not acting.settings.is_space or not visitor.name:
        return []
    return [c for c in hub.mirrored_runs(visitor.name, visitor.token) if not acting.owns(c.run_id)]
