"""What is measured of base and adapter; with nothing trained both must be the same."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_space.core.general_questions import GENERAL_QUESTIONS
from qlora_space.train import evaluate
from qlora_space.train.base_results import BaseResults
from qlora_space.train.evaluate import Evaluator
from qlora_space.train.held_out import HeldOut, answer_limits, held_out
from qlora_space.train.time_share import TimeShare
from tests.train.conftest import Session


def held(session: Session) -> HeldOut:
    """Of a base that is not the demo's."""
    base = session.plan.base.model_copy(update={"source": "local"})
    plan = session.plan.model_copy(update={"base": base, "num_scored_rows": 200})
    return held_out(session.tokenizer, session.prepared, plan)  # type: ignore[arg-type]


def test_the_general_text_is_measured_for_the_embedded_base_only(session: Session) -> None:
    assert held_out(session.tokenizer, session.prepared, session.plan).general is not None  # type: ignore[arg-type]
    assert held(session).general is None


def test_only_planned_rows_are_answered(session: Session) -> None:
    def found(**changed: object) -> HeldOut:
        plan = session.plan.model_copy(update=changed)
        return held_out(session.tokenizer, session.prepared, plan)  # type: ignore[arg-type]

    many, few = found(num_scored_rows=200), found(num_scored_rows=2, num_samples=3)
    assert (few.prompts, few.num_scored) == (many.prompts[:3], 2)
    assert len(many.prompts) == many.num_scored > 3
    assert found(score="none").num_scored == 0


def test_an_answer_may_be_as_long_as_it_can_be_right() -> None:
    assert answer_limits([10, 100, 3], "exact") == (18, 108, 11)
    assert answer_limits([10, 100, 3], "f1") == (28, 108, 14)
    assert answer_limits([10] * 19 + [100], "number") == (18,) * 19 + (108,)
    assert answer_limits([3, 50, 50], "number") == (58, 58, 58)
    assert answer_limits([9000, 9000], "number") == (512, 512)
    assert answer_limits([], "f1") == ()


def answered(count: int) -> evaluate.Measured:
    return evaluate.Measured(heldout=None, general=None, answers=("?",) * count)


def measured(evaluator: Evaluator) -> tuple[evaluate.Measured, evaluate.Measured]:
    trained = evaluator.measure_trained(0, with_answers=True)
    return evaluator.measure_base(trained), trained


def test_an_adapter_that_changes_nothing_scores_like_the_base(session: Session) -> None:
    fixed = held(session)
    evaluator = session.evaluator(fixed)
    base, trained = measured(evaluator)
    assert base.heldout
    assert trained.heldout
    assert base.heldout.mean == pytest.approx(trained.heldout.mean)
    assert base.answers == trained.answers
    shown = evaluator.shown_answers(base.answers, trained.answers)
    assert 0 < len(shown) <= len(fixed.expected)
    assert all(answer.base == answer.adapted for answer in shown)
    assert [answer.expected for answer in shown] == list(fixed.expected[: len(shown)])


def test_a_second_run_asks_the_base_for_nothing(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for answers, nor for losses, nor for samples before the first step; and finds the same."""
    file = tmp_path / "base_results" / "b.json"
    first = session.evaluator(held(session), BaseResults(file)).measure_base(answered(3))
    passes: list[int] = []
    monkeypatch.setattr(Evaluator, "losses", lambda *_: passes.append(1))
    monkeypatch.setattr(evaluate, "answer_batch", lambda *_: passes.append(1))
    again = session.evaluator(held(session), BaseResults(file)).measure_base(answered(3))
    assert again == first
    assert passes == []
    with pytest.raises(TypeError):  # another row is not known
        session.evaluator(held(session), BaseResults(file)).measure_base(answered(4))


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": [1]}'])
def test_damaged_results_of_a_base_are_made_anew(tmp_path: Path, content: str) -> None:
    file = tmp_path / "b.json"
    file.write_text(content)
    known = BaseResults(file)
    assert known.answer("a") is None
    assert known.loss("a") is None
    known.add("a", (1.5, 2))
    known.save()
    assert BaseResults(file).loss("a") == (1.5, 2)


def test_fewer_answers_where_they_take_longer_than_their_share(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "MIN_ROWS", 2)
    evaluator = session.evaluator(held(session))
    monkeypatch.setattr(TimeShare, "left_seconds", lambda *_: -1.0)
    assert len(measured(evaluator)[1].answers) == 2
    monkeypatch.setattr(TimeShare, "left_seconds", lambda *_: 1e6)
    assert len(measured(evaluator)[1].answers) == held(session).num_scored > 2


def test_general_questions_are_asked_of_both_in_the_bases_own_template(session: Session) -> None:
    """Twenty where the time is short: any first few are of every kind."""
    plan = session.plan.model_copy(update={"forgetting": True, "num_scored_rows": 0})
    asked = held_out(session.tokenizer, session.prepared, plan)  # type: ignore[arg-type]
    assert len(asked.general_prompts) == len(asked.general_limits) == len(GENERAL_QUESTIONS)
    text = session.tokenizer.decode(asked.general_prompts[0])  # type: ignore[attr-defined]
    assert f"<|im_start|>user\n{GENERAL_QUESTIONS[0].prompt}<|im_end|>" in text
    evaluator = session.evaluator(replace(asked, general_prompts=asked.general_prompts[:3]))
    base, trained = measured(evaluator)
    assert len(base.general_answers) == 3
    assert base.general_answers == trained.general_answers
    assert held(session).general_prompts == ()


def test_evaluation_has_a_share_of_all_the_time() -> None:
    now = 0.0
    share = TimeShare(0.2, lambda: now)
    assert share.left_seconds() == pytest.approx(10.0), "a quick run wants its score"
    now = 80.0
    assert share.left_seconds() == pytest.approx(20.0)
    with share.counted():
        now = 90.0
        assert share.left_seconds() == pytest.approx(10.0)
        now = 110.0
    assert share.spent_seconds == pytest.approx(30.0)
    assert share.left_seconds() == pytest.approx(-10.0)
    now = 150.0
    assert share.left_seconds() == pytest.approx(0.0)
    assert share.left_seconds(400.0) == pytest.approx(70.0), "a resumed run trained before, too"


def test_without_answers_nothing_is_generated(session: Session) -> None:
    found = session.evaluator(held(session)).measure_trained(0, with_answers=False)
    assert found.answers == ()
    assert found.heldout is not None


def test_each_row_has_the_loss_that_it_has_alone_in_the_order_of_the_file(session: Session) -> None:
    fixed = held(session)
    assert fixed.rows is not None
    evaluator = session.evaluator(fixed)
    losses = evaluator.losses(fixed.rows)
    alone = [evaluator.losses(fixed.rows.select([i])) for i in range(len(fixed.rows))]
    assert len(losses.sums) == len(fixed.rows) > 2
    assert losses.tokens == tuple(one.tokens[0] for one in alone)
    assert losses.sums == pytest.approx([one.sums[0] for one in alone], rel=1e-2)
    assert losses.mean == pytest.approx(sum(losses.sums) / sum(losses.tokens))


@contextmanager
def filled(session: Session) -> Iterator[None]:
    """The adapter does something meanwhile."""
    weights = {n: p for n, p in session.model.named_parameters() if "lora_B" in n}
    kept = {name: weight.data.clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight.data.fill_(0.1)
    try:
        yield
    finally:
        for name, weight in weights.items():
            weight.data = kept[name]


def test_the_base_is_measured_without_the_adapter(session: Session) -> None:
    before = session.evaluator(held(session)).measure_base(answered(2))
    with filled(session):
        evaluator = session.evaluator(held(session))
        base, trained = (
            evaluator.measure_base(answered(2)),
            evaluator.measure_trained(0, with_answers=True),
        )
    assert base == before
    assert trained.heldout
    assert before.heldout
    assert trained.heldout.mean != pytest.approx(before.heldout.mean)
    assert trained.answers[:2] != before.answers


@pytest.mark.parametrize("is_new", [True, False])
def test_the_first_evaluation_is_the_bases_only_where_the_adapter_is_new(
    session: Session, is_new: bool
) -> None:
    """One that training goes on from does something before the first step."""
    known = BaseResults(None)
    evaluator = session.evaluator(held(session), known)
    with nullcontext() if is_new else filled(session):
        evaluator.evaluate_if_due()
        asked = session.state.progress.eval_losses.pop(0)
    base = evaluator.measure_base(answered(0)).heldout
    assert base
    assert (asked == base.mean) is is_new


def test_losses_of_an_evaluation_that_a_rollback_has_undone_are_not_the_reports(
    session: Session,
) -> None:
    evaluator = session.evaluator(held(session))
    evaluator.evaluate_if_due()
    known = session.state.progress.eval_losses
    kept = evaluator.measure_trained(0, with_answers=False).heldout
    assert kept
    assert kept.mean == known.pop(0)
    with filled(session):
        again = evaluator.measure_trained(0, with_answers=False).heldout
    assert again
    assert again.mean != pytest.approx(kept.mean)


def test_nothing_is_measured_twice(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation is the base's, that of the adapter's step the adapter's."""
    evaluator = session.evaluator(held(session))
    evaluator.evaluate_if_due()
    monkeypatch.setattr(Evaluator, "losses", lambda *_: pytest.fail("measured again"))
    trained = evaluator.measure_trained(0, with_answers=False)
    assert evaluator.measure_base(trained).heldout == trained.heldout
    session.state.progress.eval_losses.pop(0)
