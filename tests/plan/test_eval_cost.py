"""Evaluations take their share of a run, which the plan estimates before it starts."""

from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_space.core.facts import AnswerFacts, Hardware, ModelFacts, TokenLengths
from qlora_space.core.request import TrainingRequest
from qlora_space.hub import model_facts
from qlora_space.plan import resolve
from qlora_space.plan.eval_cost import EvalCost
from tests.plan.test_memory import GEMMA_9B
from tests.plan.test_resolve import QWEN3_8B, gpu, rows

H100 = gpu(79, "NVIDIA H100 80GB HBM3")
CPU = H100.model_copy(update={"device": "cpu", "name": "CPU, 2 cores", "cpu_cores": 2})
# Rows of the embedded demo, which both measured runs had.
LETTERS = rows(1000).model_copy(
    update={
        "lengths": TokenLengths(
            p50=71, p95=92, max=102, mean=71.0, truncated_fraction=0.0, trained_fraction=0.4
        )
    }
)


ANSWERS = AnswerFacts(score="number", why="they do", p50=120, p95=200, max=300)


def cost(base: ModelFacts = QWEN3_8B, hardware: Hardware = H100, **asked: object) -> EvalCost:
    options: dict = {
        "dataset": LETTERS, "max_length": 1024, "num_eval_rows": 200, "num_samples": 4, "cpu_offload": False,
        "score": "exact",
    }  # fmt: skip
    return EvalCost(model=base, hardware=hardware, **options | asked)


def seconds(base: ModelFacts = QWEN3_8B, hardware: Hardware = H100, **asked: object) -> float:
    return cost(base, hardware, **asked).evaluation_seconds()


def test_without_held_out_rows_nothing_is_evaluated() -> None:
    assert seconds(num_eval_rows=0) == 0
    on, off = (resolve(TrainingRequest(eval_fraction=f), QWEN3_8B, LETTERS, H100) for f in (0.1, 0))
    assert on.estimate.seconds > off.estimate.seconds
    assert (off.estimate.eval_seconds, off.num_scored_rows) == (0, 0)


def test_more_answers_longer_ones_and_a_base_in_host_memory_take_longer() -> None:
    usual = seconds()
    assert usual < seconds(num_samples=64)
    assert usual < seconds(cpu_offload=True)
    long = LETTERS.model_copy(update={"answers": ANSWERS})
    assert cost().answer_seconds(20) < cost().answer_seconds(200)
    assert cost().answer_seconds(200) < cost(dataset=long).answer_seconds(200)


def test_texts_and_the_score_none_have_no_answers() -> None:
    assert cost(score="none").most_scored_rows == 0
    assert cost(dataset=LETTERS.model_copy(update={"format": "text"})).most_scored_rows == 0
    assert cost(cpu_offload=True).most_scored_rows < cost().most_scored_rows == 200


@given(
    share=st.floats(0.01, 0.9),
    steps=st.integers(1, 5000),
    num_rows=st.integers(1, 5000),
    device=st.sampled_from([CPU, H100]),
)
@settings(max_examples=60)
def test_evaluation_stays_within_its_share_but_for_the_losses_before_and_after(
    share: float, steps: int, num_rows: int, device: Hardware
) -> None:
    request = TrainingRequest(eval_share=share, max_steps=steps)
    facts = rows(num_rows).model_copy(update={"answers": ANSWERS})
    plan = resolve(request, GEMMA_9B, facts, device)
    estimate = plan.estimate
    if plan.num_scored_rows or estimate.evaluations > 2:
        assert estimate.eval_seconds <= max(share * estimate.seconds, 10) * 1.01 + 0.1
    assert estimate.evaluations in range(2, 8) or not estimate.held_out_rows
    assert plan.num_scored_rows == 0 or min(20, plan.num_eval_rows) <= plan.num_scored_rows <= 200


def test_a_larger_share_never_evaluates_less() -> None:
    found = []
    for share in (0.01, 0.05, 0.15, 0.3, 0.6, 0.9):
        plan = resolve(
            TrainingRequest(eval_share=share),
            QWEN3_8B,
            rows(300).model_copy(update={"answers": ANSWERS}),
            H100,
        )
        found.append(plan.estimate.eval_seconds)
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_what_a_person_asks_for_is_not_weighed() -> None:
    facts = rows(200).model_copy(update={"answers": ANSWERS})
    asked = TrainingRequest(eval_share=0.01, eval_steps=1, max_steps=30, score="f1")
    plan = resolve(asked, QWEN3_8B, facts, H100)
    assert (plan.eval_steps, plan.estimate.evaluations, plan.score) == (1, 31, "f1")
    assert plan.num_scored_rows == min(20, plan.num_eval_rows)
    assert resolve(TrainingRequest(score="none"), QWEN3_8B, facts, H100).num_scored_rows == 0


def test_general_questions_are_asked_where_they_fit_or_when_asked_for() -> None:
    def asks(base: ModelFacts = QWEN3_8B, hardware: Hardware = H100, **asked: object) -> bool:
        return resolve(TrainingRequest(**asked), base, rows(), hardware).forgetting  # type: ignore[arg-type]

    assert asks(max_steps=2000)
    assert not asks(max_steps=1)
    assert asks(max_steps=1, forgetting=True)
    assert not asks(max_steps=2000, forgetting=False)
    assert not asks(max_steps=2000, eval_fraction=0.0)
    assert not asks(model_facts("demo", None, None), CPU, max_steps=100_000)


def test_the_score_is_chosen_by_the_answers_with_its_reason() -> None:
    facts = rows().model_copy(update={"answers": ANSWERS})
    plan = resolve(TrainingRequest(), QWEN3_8B, facts, H100)
    assert plan.score == "number"
    assert ("score", "number", "they do") in [(c.name, c.value, c.why) for c in plan.choices]
    text = facts.model_copy(update={"format": "text"})
    assert resolve(TrainingRequest(score="f1"), QWEN3_8B, text, H100).score == "none"


def test_a_whole_run_takes_about_as_long_as_estimated() -> None:
    """From the command to the end, with all evaluations: the demo on two quiet cores (docs/LOG.md)."""
    request = TrainingRequest(max_steps=429, eval_share=0.9)
    plan = resolve(request, model_facts("demo", None, None), LETTERS, CPU, eval_split="test")
    assert (plan.num_eval_rows, plan.num_scored_rows) == (200, 200)
    assert 83 / 1.3 < plan.estimate.seconds < 83 * 1.3


def test_truncated_rows_count_up_to_max_length_but_plain_text_counts_whole() -> None:
    lengths = LETTERS.lengths.model_copy(
        update={"p50": 18_000, "mean": 20_000.0, "p95": 40_000, "max": 60_000}
    )
    chats = LETTERS.model_copy(update={"lengths": lengths})
    assert seconds(dataset=chats) < seconds(dataset=chats, max_length=4096)
    assert seconds(dataset=chats) < seconds(dataset=chats.model_copy(update={"format": "text"})) / 5
