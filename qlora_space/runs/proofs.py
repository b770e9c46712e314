"""proofs.jsonl: what was found when a publication was downloaded again, one line each."""

from qlora_space.core.atomic import write_atomically
from qlora_space.core.proof import Proof
from qlora_space.runs.folder import RunFolder

_FILE = "proofs.jsonl"


def proofs(run: RunFolder) -> list[Proof]:
    """Oldest first."""
    file = run.path / _FILE
    lines = file.read_bytes().splitlines() if file.is_file() else []
    return [Proof.model_validate_json(line) for line in lines]


def proof_of(run: RunFolder, commit: str) -> Proof | None:
    """The newest one of that commit."""
    return next((each for each in reversed(proofs(run)) if each.commit == commit), None)


def add_proof(run: RunFolder, proof: Proof) -> None:
    """Raises DiskFull."""
    lines = [each.model_dump_json() for each in (*proofs(run), proof)]
    write_atomically(run.path / _FILE, "\n".join(lines) + "\n")
