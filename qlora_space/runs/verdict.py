"""The outcome of a run in words that its figures bear out, for the page and the terminal alike."""

from dataclasses import dataclass
from typing import Literal

from qlora_space.core.intervals import MIN_ROWS
from qlora_space.core.scoring import MEASURE_NAMES
from qlora_space.core.wording import counted, percent, significant
from qlora_space.runs.report import LossChange, Measure, Report, ScoreChange, Scores


@dataclass(frozen=True)
class Verdict:
    """`outcome` is better or worse only where 0 is outside the 95 % interval of the change."""

    outcome: Literal["better", "worse", "unclear"]
    headline: str
    facts: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def verdict(report: Report) -> Verdict:
    """What can be said of the adapter against its base."""
    by_name = {scores.name: scores for scores in report.scores}
    base, trained = by_name.get("base"), by_name.get("trained")
    if base is None or trained is None or not report.num_eval_rows:
        text = "The adapter is ready. No rows were held out, so nothing tells whether it is better than the base."
        return Verdict("unclear", text, warnings=_lacks(report, trained))
    outcome, headline = _heldout(report, base, trained)
    worse = _worse_answers(report)
    return Verdict(
        "unclear" if worse and outcome == "better" else outcome,
        headline,
        facts=(
            *_answers(report, base, trained),
            *_selection(report),
            *_ends_of_texts(report),
        ),
        warnings=(
            *worse,
            *_general(report, base, trained),
            *_forgotten(report),
            *_lacks(report, trained),
        ),
    )


def _heldout(
    report: Report, base: Scores, trained: Scores
) -> tuple[Literal["better", "worse", "unclear"], str]:
    change, rows = report.heldout_change, measured_on(report)
    if change is None and _num_independent(report) < MIN_ROWS:
        return "unclear", f"{rows}{_num_exact(report, trained)}: not enough to tell"
    losses = _arrow(base.heldout_loss, trained.heldout_loss)
    if change is None:
        return "unclear", f"Held-out loss {losses} on {rows}; this report has no interval for it"
    span = f"95 % interval of the change {_interval(change)}"
    if change.is_better:
        return "better", f"Better on {rows}: loss {losses} ({span})"
    if change.is_worse:
        return "worse", f"Worse on {rows}: loss {losses} ({span})"
    return "unclear", f"No clear change on {rows}: loss {losses} ({span})"


def measured_on(report: Report) -> str:
    """'40 held-out rows'. Pieces of one text are no independent rows, so their texts are counted."""
    if report.eval_texts_are_trained:
        return counted(report.num_eval_rows, "held-out piece")
    if report.heldout_rows and report.heldout_rows.pieces:
        return f"{counted(_num_independent(report), 'held-out text')} ({report.num_eval_rows:,} pieces)"
    return counted(report.num_eval_rows, "held-out row")


def _num_independent(report: Report) -> int:
    rows = report.heldout_rows
    return len(rows.pieces) if rows and rows.pieces else report.num_eval_rows


def _ends_of_texts(report: Report) -> tuple[str, ...]:
    if not report.eval_texts_are_trained:
        return ()
    return (
        "Measured on the ends of the texts that it was trained on: nothing is known about other texts.",
    )


def _num_exact(report: Report, trained: Scores) -> str:
    if trained.exact_match is None:
        return ""
    return f", {round(trained.exact_match * report.num_exact_match_rows):,} exact"


def in_words(measure: Measure) -> str:
    """'Right number: 12 → 45 of 200 (95 % interval of the change +8 to +24 points)'."""
    n, means = measure.num_rows, measure.means
    if measure.is_count:
        before, after = (f"{round(mean * n):,}" for mean in means)
        found = f"{measure_name(measure)}: {before} → {after} of {n:,}"
    else:
        before, after = (percent(mean) for mean in means)
        found = f"{measure_name(measure)}: {before} → {after} over {n:,} answers"
    if measure.change is None:
        return f"{found} (not enough to tell)"
    return f"{found} (95 % interval of the change {points_of(measure.change)})"


def measure_name(measure: Measure) -> str:
    return MEASURE_NAMES.get(measure.name, measure.name)


def points_of(change: ScoreChange) -> str:
    """'+8 to +24 points': a hundred are all answers right."""
    low, high = (f"{100 * value:+.0f}".replace("-", "−") for value in (change.low, change.high))
    return f"{low} to {high} points"


def _answers(report: Report, base: Scores, trained: Scores) -> tuple[str, ...]:
    if report.measures:
        return tuple(map(in_words, report.measures))
    exact = _exact(report, base, trained)
    return (exact,) if exact else ()


def _worse_answers(report: Report) -> tuple[str, ...]:
    """Of the plan's own score: others may go down where that one goes up."""
    first = report.measures[:1]
    return tuple(
        f"Its answers got worse: {in_words(m)}." for m in first if m.change and m.change.is_worse
    )


def _exact(report: Report, base: Scores, trained: Scores) -> str:
    if base.exact_match is None or trained.exact_match is None:
        return ""
    n = report.num_exact_match_rows
    return f"Exact answers: {round(base.exact_match * n):,} → {round(trained.exact_match * n):,} of {n:,}"


def _selection(report: Report) -> tuple[str, ...]:
    """The interval is of one adapter; that it is the best of several on these rows is not in it."""
    step = report.adapter_step
    if report.heldout_change is None or step != report.best_step or step in (None, report.steps):
        return ()
    return (
        f"Step {step:,} was chosen on these same rows: on new rows expect a little less of a change.",
    )


def _general(report: Report, base: Scores, trained: Scores) -> tuple[str, ...]:
    before, after, change = base.general_loss, trained.general_loss, report.general_change
    if before is None or after is None or after <= before:
        return ()
    if change is not None and not change.is_worse:
        return ()
    worse = percent(after / before - 1) if before > 0 else ""
    return (
        f"Worse on other text: general loss {_arrow(before, after)}{f', {worse} higher' if worse else ''}. "
        "The adapter has forgotten some of what the base knew.",
    )


def _forgotten(report: Report) -> tuple[str, ...]:
    """Kinds of general questions that it answers clearly worse; all of them in one line where all together are."""
    worse = [m for m in report.forgetting if m.change and m.change.is_worse]
    words = "The adapter has forgotten some of what the base could answer."
    return tuple(f"{in_words(measure)}. {words}" for measure in worse[:1])


def _lacks(report: Report, trained: Scores | None) -> tuple[str, ...]:
    """What the report of a stopped run does not have."""
    if not report.stopped_by_hand:
        return ()
    planned = f" of {report.planned_steps:,}" if report.planned_steps else ""
    missing = [] if trained and trained.exact_match is not None else ["answers were not compared"]
    best, kept = report.best_step, report.adapter_step
    if best is not None and kept is not None and best != kept:
        missing.append(f"the adapter is that of step {kept:,}, not of the best one, step {best:,}")
    after = f": {' and '.join(missing)}" if missing else ""
    return (f"Stopped after step {report.steps:,}{planned}{after}.",)


def _arrow(before: float | None, after: float | None) -> str:
    known = [significant(value) if value is not None else "–" for value in (before, after)]
    return " → ".join(known)


def _interval(change: LossChange) -> str:
    low, high = (significant(value).replace("-", "−") for value in (change.low, change.high))
    return f"{low} to {high}"
