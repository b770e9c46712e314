"""Publications are proved: downloaded again and compared, by a process of its own, and the result kept with the run."""

import logging
from collections.abc import Iterator

from pydantic import TypeAdapter

from qlora_space.app.actions import Actions
from qlora_space.core.errors import QloraSpaceError, RunError
from qlora_space.core.export import Exporting
from qlora_space.core.proof import Proof
from qlora_space.places.service import Service
from qlora_space.runs import Publication, PushRequest, RunFolder
from qlora_space.runs.proofs import add_proof

_log = logging.getLogger(__name__)
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
        for reply in prover.ask(message):
            found = _reply_adapter.validate_python(reply)
            if isinstance(found, Proof):
                add_proof(run, found)
                if found.is_proved:
                    found = _in_card(acting, run, found)
            yield found
    finally:
        prover.close()


def _in_card(acting: Actions, run: RunFolder, proof: Proof) -> Proof:
    """Publish the card once more, with the proof; everything else in that commit is the same, by its hashes. The proof
    itself is worth more than its place in the card."""
    target = acting.read_target(run, proof.repo)
    if target.state != "ours":  # deleted meanwhile: it is not to be made anew
        return proof
    push = PushRequest(
        repo=proof.repo,
        private=target.is_private,
        for_16_bit=proof.for_16_bit,
        with_base=proof.with_base,
        step=proof.step,
    )
    try:
        done = acting.publish(run, push, is_kept=False)
    except QloraSpaceError as error:
        _log.warning("The card of %s has no proof: %s", proof.repo, error)
        return proof
    in_card = proof.model_copy(update={"commit": done.commit})
    add_proof(run, in_card)
    return in_card
