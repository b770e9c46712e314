"""Publications of the visitor's runs are proved, by a process of its own."""

from collections.abc import Iterator

from pydantic import TypeAdapter

from qlora_space.app.actions import Actions
from qlora_space.core.errors import RunError
from qlora_space.core.export import Exporting
from qlora_space.core.proof import Proof
from qlora_space.hub.publish_run import kept_proof
from qlora_space.places.service import Service
from qlora_space.runs import Publication, RunFolder

_SECONDS = 3600.0  # between two replies
_reply_adapter: TypeAdapter[Exporting | Proof] = TypeAdapter(Exporting | Proof)


def prove(
    acting: Actions, run: RunFolder, publication: Publication | None = None
) -> Iterator[Exporting | Proof]:
    """Progress, then the proof of a publication, by default the newest. Raises QloraSpaceError: nothing is known."""
    run = acting.run(run.id)
    published = publication or next(reversed(run.publications()), None)
    if published is None:
        raise RunError("This run was not published.", "Publish it first.")
    if busy := acting.busy_name():
        raise RunError(f"{busy} has this machine now.", "Prove it when that is done.")
    prover = Service("prove", acting.settings.home / "logs", _SECONDS)
    message = {
        "run": str(run.path),
        "repo": published.repo,
        "commit": published.commit,
        "step": published.step,
        "token": acting.token,
    }
    try:
        replies = (_reply_adapter.validate_python(reply) for reply in prover.ask(message))
        for reply in replies:
            yield kept_proof(run, reply, acting.token) if isinstance(reply, Proof) else reply
    finally:
        prover.close()
