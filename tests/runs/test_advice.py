"""Which advice is given about the curves, and when none is."""

from qlora_space.core.events import Event, Finished, Metric, Phase
from qlora_space.runs import RunView, advice, best_step, ended_early, fold, slowdown
from tests.train.conftest import demo_plan

PLAN = demo_plan()
PATIENT = PLAN.model_copy(update={"early_stopping_patience": 2})


def measured(losses: dict[int, float], *more: Event, total: int = 60) -> RunView:
    evaluations = [
        Metric(step=step, total_steps=total, values={"eval_loss": loss})
        for step, loss in losses.items()
    ]
    return fold([*evaluations, *more])


def test_overfitting_is_reported_with_the_step_of_the_adapter() -> None:
    words = advice(measured({0: 0.1, 20: 0.5, 40: 0.7, 60: 0.9}), PLAN)
    assert "lowest at step 20 (0.5) and is 0.9 now" in words
    assert "step 20 is the one that is kept" in words
    last = PLAN.model_copy(update={"load_best_model_at_end": False})
    assert "turned off" in advice(measured({20: 0.5, 40: 0.7, 60: 0.9}), last)


def test_one_worse_evaluation_or_a_tiny_rise_is_not_called_overfitting() -> None:
    assert advice(measured({20: 0.6, 40: 0.5, 60: 0.9}), PLAN) == ""
    assert advice(measured({20: 0.5, 40: 0.505, 60: 0.505}), PLAN) == ""
    assert advice(measured({20: 0.5, 40: 0.9}), PLAN) == ""


def test_a_loss_that_still_falls_is_reported_only_at_the_end() -> None:
    falling = {20: 0.9, 40: 0.7, 60: 0.5}
    assert advice(measured(falling), PLAN) == ""
    assert "could learn more" in advice(measured(falling, Finished(step=60)), PLAN)
    assert advice(measured(falling, Finished(step=60), total=90), PLAN) == ""


def test_an_early_end_has_its_reason() -> None:
    view = measured({0: 2.0, 10: 0.5, 20: 0.7, 30: 0.9}, Finished(step=30))
    assert best_step(view) == 10
    why = ended_early(view, PATIENT)
    assert "at step 30 of 60: 2 evaluations in a row brought no better" in why
    assert "than step 10" in why
    stopped = measured({10: 0.5}, Finished(step=10, stopped_by_hand=True))
    assert ended_early(stopped, PATIENT) == ""
    assert ended_early(measured({60: 0.5}, Finished(step=60)), PATIENT) == ""


def test_steps_far_slower_than_planned_are_explained_and_others_blamed_only_under_load() -> None:
    planned = PLAN.estimate.seconds / PLAN.estimate.steps

    def at(times: float) -> RunView:
        train = Phase(name="train", done=0, total=60)
        steps = [
            Metric(time=i * times * planned, step=i, total_steps=60, values={"loss": 1.0})
            for i in range(1, 9)
        ]
        return fold([train, *steps])

    busy = "20 times slower than planned: other work on this machine."
    assert slowdown(at(20), PLAN, lambda: True) == busy
    assert slowdown(at(20), PLAN, lambda: False) == "20 times slower than planned."
    assert slowdown(at(1.5), PLAN, lambda: True) == ""
    on_gpu = PLAN.model_copy(
        update={"hardware": PLAN.hardware.model_copy(update={"device": "cuda"})}
    )
    assert slowdown(at(20), on_gpu, lambda: True).endswith("other work on this GPU.")
    assert slowdown(RunView(), PLAN, lambda: True) == ""
