"""Every export of a finished run beside the adapter on the base that it was trained on, as rows of a table.

    python benchmarks/exports.py RUN_FOLDER [FORMAT:BASE[:GGUF_TYPE] ...]

FORMAT:BASE is for example merged:original or gguf::f16. What the app refuses to make (merged-nf4:trained of a 4-bit
run) is made here, to show why.
"""

import sys
import tempfile
import time
from pathlib import Path

from qlora_space.core.export import Exported, ExportOptions
from qlora_space.core.wording import num_bytes
from qlora_space.model import export_run
from qlora_space.runs import RunFolder

_ALL = ("merged:trained", "merged:original", "merged-nf4:original", "merged-nf4:trained")


def main() -> None:
    run = RunFolder(Path(sys.argv[1]))
    export_run._check = lambda *_: None
    print(
        "| export | size | same token | KL, nats | logit difference | loss | adapter's loss | llama.cpp | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in sys.argv[2:] or _ALL:
        kind, onto, gguf_type = [*name.split(":"), "", ""][:3]
        asked = {"format": kind, "onto": onto or None, "gguf_type": gguf_type or "q8_0"}
        options = ExportOptions.model_validate(asked)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            *_, done = export_run.export_run(run, options, Path(folder) / "out", None)
        assert isinstance(done, Exported)
        print(_row(name, done, time.monotonic() - started), flush=True)


def _row(name: str, done: Exported, seconds: float) -> str:
    found, check = done.agreement, done.llama_cpp
    said = f"{check.same_answers} of {check.prompts}" if check else ""
    if found is None or found.kl is None:
        return f"| {name} | {num_bytes(done.num_bytes)} | {done.why_not_measured} | | | | | {said} | {seconds:.0f} |"
    return (
        f"| {name} | {num_bytes(done.num_bytes)} | {100 * found.top1:.1f} % of {found.tokens} | {found.kl:.2g} | "
        f"{found.largest_logit_difference:.1f} | {found.loss:.3f} | {found.adapter_loss:.3f} | {said} | {seconds:.0f} |"
    )


if __name__ == "__main__":
    main()
