"""The proof of a finished run that is published to a Hub on loopback, and of the same with planted damage.

python benchmarks/prove.py RUN_FOLDER
"""

import os
import sys
import time
from pathlib import Path

from tests.fake_hub import ALICE, FakeHub, StoredFile

_REPO = "alice/proved"


def main() -> None:
    with FakeHub() as hub:
        os.environ |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
        _prove(hub, Path(sys.argv[1]))


def _prove(hub: FakeHub, folder: Path) -> None:
    from qlora_space.hub.publish import publish_adapter
    from qlora_space.model.proof import PublishedAs, prove
    from qlora_space.runs import RunFolder

    run = RunFolder(folder)
    done = publish_adapter(run.adapter_folder, "# Card", _REPO, False, ALICE, run.id)
    repo = hub.repo("model", _REPO)
    weights = bytearray(repo.files["adapter_model.safetensors"])
    weights[-2] ^= 0x80  # one bit of the exponent of one weight
    broken = StoredFile(bytes(weights), repo.head.files["adapter_model.safetensors"].is_lfs)
    for name, damaged in (("as published", False), ("one bit of one weight", True)):
        commit = done.commit
        if damaged:
            files = {**repo.head.files, "adapter_model.safetensors": broken}
            commit = repo.commit(files, "damage").sha
        started = time.monotonic()
        *_, proof = prove(run, PublishedAs(_REPO, commit), ALICE)
        print(f"{name}: {time.monotonic() - started:.0f} s. {proof.in_words()}", flush=True)


if __name__ == "__main__":
    main()
