"""Publications are proved: downloaded again and compared, by a process of its own, and the result kept with the run."""

from collections.abc import Iterator

from pydantic import TypeAdapter

from qlora_space.app.actions import Actions
from qlora_space.core.errors import RunError
from qlora_space.core.export import Exporting
from qlora_space.core.proof import Proof
from qlora_space.places.service import Service
from qlora_space.runs import Publication, RunFolder
from qlora_space.runs.proofs import add_proof

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
        "step": getattr(published, "step", None),
        "token": acting.token,
    }
    try:
        for reply in prover.ask(message):
            found = _reply_adapter.validate_python(reply)
            if isinstance(found, Proof):
                add_proof(run, found)
            yield found
    finally:
        prover.close()
