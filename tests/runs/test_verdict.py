"""Words after a run: never more than its figures bear out. Reports of earlier versions are read."""

import json

import pytest

from qlora_space.core.events import Finished, event_from_line
from qlora_space.runs import (
    LossChange,
    Measure,
    Report,
    RowLosses,
    ScoreChange,
    Scores,
    verdict,
)

BETTER = LossChange(change=-0.5, low=-0.7, high=-0.3)


def report(
    after: float = 1.5, exact: float | None = 0.5, general: float | None = None, **changed: object
) -> Report:
    base = Scores(
        name="base", heldout_loss=2.0, exact_match=exact and 0.0, general_loss=general and 1.0
    )
    trained = Scores(name="trained", heldout_loss=after, exact_match=exact, general_loss=general)
    made = Report(
        scores=(base, trained), num_eval_rows=40, num_exact_match_rows=40, steps=60, trained_tokens=1,
        train_seconds=1, total_seconds=1, tokens_per_second=1, peak_gib=1, adapter_sha256="0", planned_steps=60,
        heldout_change=BETTER,
    )  # fmt: skip
    return made.model_copy(update=changed)


def test_an_improvement_outside_its_interval_is_better_with_the_number_of_rows() -> None:
    found = verdict(report())
    assert found.outcome == "better"
    assert (
        found.headline
        == "Better on 40 held-out rows: loss 2.00 → 1.50 (95 % interval of the change −0.700 to −0.300)"
    )
    assert found.facts == ("Exact answers: 0 → 20 of 40",)
    assert found.warnings == ()


@pytest.mark.parametrize(("low", "high"), [(-0.9, 0.0), (-0.5, 0.1)])
def test_an_interval_with_zero_in_it_is_no_improvement(low: float, high: float) -> None:
    found = verdict(report(heldout_change=LossChange(change=-0.4, low=low, high=high)))
    assert found.outcome == "unclear"
    assert found.headline.startswith("No clear change on 40 held-out rows")


def test_a_loss_that_rose_is_worse() -> None:
    assert (
        verdict(report(heldout_change=LossChange(change=0.4, low=0.1, high=0.7))).outcome == "worse"
    )


def test_few_rows_are_not_enough_to_tell_whatever_the_losses_are() -> None:
    few = report(exact=0.0, num_eval_rows=3, num_exact_match_rows=3, heldout_change=None)
    found = verdict(few)
    assert (found.outcome, found.headline) == (
        "unclear",
        "3 held-out rows, 0 exact: not enough to tell",
    )


def of_texts(num_texts: int, pieces_each: int, **changed: object) -> Report:
    ones, n = (1.0,) * (num_texts * pieces_each), num_texts * pieces_each
    rows = RowLosses(tokens=(5,) * n, base=ones, trained=ones, pieces=(pieces_each,) * num_texts)
    made = report(num_eval_rows=n, exact=None, heldout_rows=rows)
    return made.model_copy(update=changed)


def test_pieces_of_few_texts_are_not_enough_to_tell() -> None:
    found = verdict(of_texts(3, 40, heldout_change=None))
    assert found.headline == "3 held-out texts (120 pieces): not enough to tell"
    assert verdict(of_texts(30, 2)).headline.startswith("Better on 30 held-out texts (60 pieces)")


def test_pieces_of_one_text_are_summed() -> None:
    rows = RowLosses(tokens=(1, 2, 3), base=(1, 1, 4), trained=(2, 1, 5), pieces=(2, 1))
    assert rows.of_texts() == RowLosses(tokens=(3, 3), base=(2, 4), trained=(3, 5))
    alone = rows.model_copy(update={"pieces": ()})
    assert alone.of_texts() == alone


def test_ends_of_trained_texts_say_nothing_of_others() -> None:
    found = verdict(report(exact=None, eval_texts_are_trained=True))
    assert found.headline.startswith("Better on 40 held-out pieces")
    assert "nothing is known about other texts" in found.facts[-1]


def test_an_adapter_chosen_on_the_rows_that_it_is_measured_on_says_so() -> None:
    chosen = verdict(report(best_step=40, adapter_step=40)).facts
    assert chosen[-1].startswith("Step 40 was chosen on these same rows")
    last, by_hand = {"best_step": 60, "adapter_step": 60}, {"best_step": 20, "adapter_step": 60}
    for steps in (last, by_hand):
        assert len(verdict(report(**steps)).facts) == 1  # type: ignore[arg-type]


def test_a_general_loss_is_marked_only_when_it_got_worse() -> None:
    higher = LossChange(change=0.1, low=0.05, high=0.2)
    assert "10 % higher" in verdict(report(general=1.1, general_change=higher)).warnings[0]
    noise = LossChange(change=0.1, low=-0.05, high=0.2)
    assert verdict(report(general=1.1, general_change=noise)).warnings == ()
    assert verdict(report(general=0.9)).warnings == ()
    assert verdict(report(general=1.1)).warnings, "an older report without an interval"


def test_a_stopped_run_says_what_its_report_lacks() -> None:
    stopped = report(exact=None, stopped_by_hand=True, steps=20, best_step=10, adapter_step=20)
    assert verdict(stopped).warnings == (
        "Stopped after step 20 of 60: answers were not compared and the adapter is that of step 20, "
        "not of the best one, step 10.",
    )


def right(change: ScoreChange | None, name: str = "number") -> Measure:
    rows = (0.0,) * 30 + (1.0,) * 10
    return Measure(name=name, base=rows, trained=rows[::-1], change=change)


UP = ScoreChange(change=0.25, low=0.081, high=0.42)
DOWN = ScoreChange(change=-0.25, low=-0.42, high=-0.081)


def test_each_measure_of_the_answers_is_a_fact_with_its_interval_and_number() -> None:
    graded = Measure(name="f1", base=(0.5,) * 40, trained=(0.75,) * 40, change=UP)
    found = verdict(report(measures=(right(UP), graded, right(None, "exact"))))
    assert found.outcome == "better"
    assert found.facts == (
        "Right number: 10 → 10 of 40 (95 % interval of the change +8 to +42 points)",
        "Shared words (F1): 50 % → 75 % over 40 answers (95 % interval of the change +8 to +42 points)",
        "Exact answers: 10 → 10 of 40 (not enough to tell)",
    )


def test_a_lower_loss_with_worse_answers_is_not_better() -> None:
    found = verdict(report(measures=(right(DOWN), right(UP, "exact"))))
    assert found.outcome == "unclear"
    assert found.warnings[0].startswith("Its answers got worse: Right number")
    assert "−42 to −8 points" in found.warnings[0]
    assert verdict(report(measures=(right(UP), right(DOWN, "exact")))).warnings == ()


def test_general_questions_that_are_answered_worse_are_a_warning() -> None:
    forgotten = verdict(report(forgetting=(right(DOWN, "general"), right(DOWN, "arithmetic"))))
    assert len(forgotten.warnings) == 1
    assert forgotten.warnings[0].startswith("All general questions: 10 → 10 of 40")
    assert "has forgotten" in forgotten.warnings[0]
    one = verdict(report(forgetting=(right(None, "general"), right(DOWN, "arithmetic")))).warnings
    assert one[0].startswith("Arithmetic")
    assert (
        verdict(report(forgetting=(right(UP, "general"), right(None, "arithmetic")))).warnings == ()
    )


def test_reports_and_events_of_earlier_versions_are_read() -> None:
    new = {
        "heldout_rows",
        "heldout_change",
        "general_rows",
        "general_change",
        "planned_steps",
        "stopped_by_hand",
        "measures",
        "forgetting",
    }
    old = {k: v for k, v in json.loads(report().model_dump_json()).items() if k not in new}
    read = Report.model_validate_json(json.dumps(old | {"stopped_early": True}))
    assert read.stopped_by_hand
    assert (
        verdict(read).headline
        == "Held-out loss 2.00 → 1.50 on 40 held-out rows; this report has no interval for it"
    )
    event = event_from_line('{"kind": "finished", "step": 3, "stopped_early": true}')
    assert isinstance(event, Finished)
    assert event.stopped_by_hand
    assert event_from_line(event.model_dump_json()) == event
