"""The report of a finished run, from what was measured."""

import importlib.metadata
import platform

from qlora_space.data import Prepared
from qlora_space.model import adapter_sha256
from qlora_space.runs import Answer, Report, RunFolder, Scores, view_of
from qlora_space.train.memory import memory_peak_gib

_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate")


def make_report(  # noqa: PLR0913 - each argument is one line of the report
    *,
    run: RunFolder,
    prepared: Prepared,
    scores: tuple[Scores, Scores],
    answers: tuple[Answer, ...],
    steps: int,
    tokens_seen: int,
    trained_tokens: int,
    train_seconds: float,
    total_seconds: float,
    best_step: int | None,
) -> Report:
    """`tokens_seen` went through the model, `trained_tokens` of them had a loss."""
    has_matches = scores[0].exact_match is not None
    return Report(
        scores=scores,
        answers=answers,
        num_eval_rows=prepared.manifest.eval_rows,
        num_exact_match_rows=len(prepared.eval_examples()) if has_matches else 0,
        steps=steps,
        trained_tokens=trained_tokens,
        train_seconds=round(train_seconds, 2),
        total_seconds=round(total_seconds, 2),
        tokens_per_second=round(tokens_seen / max(train_seconds, 1e-9), 1),
        peak_gib=round(memory_peak_gib(run.plan().hardware.device), 3),
        best_step=best_step,
        stopped_early=run.stop_wish() is not None,
        gate=gate.rungs if (gate := view_of(run).gate) else (),
        adapter_sha256=adapter_sha256(run.adapter_folder),
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    )
