"""The report of a finished run, from what was measured."""

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass

from qlora_space.core.intervals import change_per_token, score_change
from qlora_space.core.options import Score
from qlora_space.core.scoring import measured
from qlora_space.data import Prepared
from qlora_space.model import adapter_sha256
from qlora_space.runs import (
    Answer,
    LossChange,
    Measure,
    Report,
    RowLosses,
    RunFolder,
    ScoreChange,
    Scores,
    view_of,
)
from qlora_space.train.evaluate import Losses, Measured
from qlora_space.train.forgetting import right_answers
from qlora_space.train.held_out import HeldOut
from qlora_space.train.metrics import memory_peak_gib
from qlora_space.train.snapshot import Progress

_LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate")


@dataclass(frozen=True)
class RunEnd:
    """How far a run came. What `progress` counts is of all attempts together, `total_seconds` of this one."""

    progress: Progress
    planned_steps: int
    adapter_step: int
    stopped_by_hand: bool
    total_seconds: float


def make_report(
    *,
    run: RunFolder,
    prepared: Prepared,
    both: tuple[Measured, Measured],
    measures: tuple[Measure, ...],
    answers: tuple[Answer, ...],
    end: RunEnd,
) -> Report:
    """`both`: base and trained, on the same rows."""
    progress, (base, trained) = end.progress, both
    exact = next((measure for measure in measures if measure.name == "exact"), None)
    matches = exact.means if exact else (None, None)
    manifest = prepared.manifest
    # Ends of the texts that are trained on are measured as pieces of these: the verdict says so.
    pieces = () if manifest.eval_texts_are_trained else manifest.eval_pieces
    heldout = _rows(base.heldout, trained.heldout, pieces)
    general = _rows(base.general, trained.general)
    return Report(
        scores=(_scores("base", base, matches[0]), _scores("trained", trained, matches[1])),
        heldout_rows=heldout,
        heldout_change=change_of(heldout),
        eval_texts_are_trained=manifest.eval_texts_are_trained,
        general_rows=general,
        general_change=change_of(general),
        measures=measures,
        forgetting=_forgetting(base.general_answers, trained.general_answers),
        answers=answers,
        num_eval_rows=manifest.eval_rows,
        num_exact_match_rows=exact.num_rows if exact else 0,
        steps=progress.step,
        trained_tokens=progress.trained_tokens,
        train_seconds=round(progress.train_seconds, 2),
        total_seconds=round(end.total_seconds, 2),
        tokens_per_second=round(progress.tokens_seen / max(progress.train_seconds, 1e-9), 1),
        peak_gib=round(memory_peak_gib(run.plan().hardware.device), 3),
        best_step=progress.best_step,
        adapter_step=end.adapter_step,
        stopped_by_hand=end.stopped_by_hand,
        planned_steps=end.planned_steps,
        gate=gate.points if (gate := view_of(run).gate) else (),
        adapter_sha256=adapter_sha256(run.adapter_folder),
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    )


def _scores(name: str, found: Measured, exact_match: float | None) -> Scores:
    return Scores(
        name=name,
        heldout_loss=found.heldout.mean if found.heldout else None,
        exact_match=exact_match,
        general_loss=found.general.mean if found.general else None,
    )


def measures_of(
    score: Score, held: HeldOut, base: Sequence[str], trained: Sequence[str]
) -> tuple[Measure, ...]:
    """Every measure of a score, of the answers of base and trained model to the first held-out prompts.

    Whether they are exact is one of them only where expected answers are short enough to be met."""
    expected = held.expected[: len(base)]
    before, after = (
        [measured(score, answer, right) for answer, right in zip(answers, expected, strict=True)]
        for answers in (base, trained)
    )
    names = [n for n in (before[0] if before else ()) if n != "exact" or held.can_match]
    return tuple(
        _measure(name, [row[name] for row in before], [row[name] for row in after])
        for name in names
    )


def _forgetting(base: Sequence[str], trained: Sequence[str]) -> tuple[Measure, ...]:
    if not base:
        return ()
    before, after = right_answers(base), right_answers(trained)
    return tuple(_measure(name, before[name], after[name]) for name in before)


def _measure(name: str, base: list[float], trained: list[float]) -> Measure:
    found = score_change([after - before for before, after in zip(base, trained, strict=True)])
    change = found and ScoreChange(change=found.change, low=found.low, high=found.high)
    return Measure(name=name, base=tuple(base), trained=tuple(trained), change=change)


def _rows(
    base: Losses | None, trained: Losses | None, pieces: tuple[int, ...] = ()
) -> RowLosses | None:
    if base is None or trained is None:
        return None
    return RowLosses(tokens=base.tokens, base=base.sums, trained=trained.sums, pieces=pieces)


def change_of(rows: RowLosses | None) -> LossChange | None:
    """With its interval, in which a text counts once however many pieces it has; None for too few of them."""
    if rows is None:
        return None
    texts = rows.of_texts()
    changes = [after - before for before, after in zip(texts.base, texts.trained, strict=True)]
    interval = change_per_token(changes, texts.tokens)
    return interval and LossChange(change=interval.change, low=interval.low, high=interval.high)
