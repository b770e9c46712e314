"""The report of a finished run, from what was measured."""

import importlib.metadata
import platform

from qlora_space.data import Prepared
from qlora_space.model import adapter_sha256
from qlora_space.runs import Answer, Report, RunFolder, Scores, view_of
from qlora_space.train.metrics import memory_peak_gib
from qlora_space.train.snapshot import Progress

_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate")


def make_report(
    *,
    run: RunFolder,
    prepared: Prepared,
    scores: tuple[Scores, Scores],
    answers: tuple[Answer, ...],
    progress: Progress,
    total_seconds: float,
    adapter_step: int,
) -> Report:
    """Seconds, tokens and steps are those of all attempts together, but for `total_seconds`."""
    has_matches = scores[0].exact_match is not None
    return Report(
        scores=scores,
        answers=answers,
        num_eval_rows=prepared.manifest.eval_rows,
        num_exact_match_rows=len(prepared.eval_examples()) if has_matches else 0,
        steps=progress.step,
        trained_tokens=progress.trained_tokens,
        train_seconds=round(progress.train_seconds, 2),
        total_seconds=round(total_seconds, 2),
        tokens_per_second=round(progress.tokens_seen / max(progress.train_seconds, 1e-9), 1),
        peak_gib=round(memory_peak_gib(run.plan().hardware.device), 3),
        best_step=progress.best_step,
        adapter_step=adapter_step,
        stopped_early=run.stop_request() is not None,
        gate=gate.points if (gate := view_of(run).gate) else (),
        adapter_sha256=adapter_sha256(run.adapter_folder),
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    )
