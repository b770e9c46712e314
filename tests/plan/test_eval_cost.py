"""Evaluations take their share of a run, which the plan estimates before it starts."""

import pytest

from qlora_space.core.facts import Hardware, ModelFacts, TokenLengths
from qlora_space.core.request import TrainingRequest
from qlora_space.hub import model_facts
from qlora_space.plan import resolve
from qlora_space.plan.eval_cost import eval_seconds
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


def seconds(base: ModelFacts = QWEN3_8B, hardware: Hardware = H100, **asked: object) -> float:
    options: dict = {
        "max_length": 1024,
        "num_eval_rows": 200,
        "evaluations": 7,
        "num_samples": 4,
        "cpu_offload": False,
    }
    data = options.pop("dataset", asked.pop("dataset", LETTERS))
    return eval_seconds(base, hardware, data, **options | asked)  # type: ignore[arg-type]


def test_without_held_out_rows_nothing_is_evaluated() -> None:
    assert seconds(num_eval_rows=0) == 0
    on, off = (resolve(TrainingRequest(eval_fraction=f), QWEN3_8B, LETTERS, H100) for f in (0.1, 0))
    assert on.estimate.seconds > off.estimate.seconds + 20


def test_more_evaluations_more_answers_and_a_base_in_host_memory_take_longer() -> None:
    usual = seconds()
    assert usual < seconds(evaluations=14)
    assert usual < seconds(num_samples=64)
    assert usual < seconds(cpu_offload=True)


def test_texts_and_long_answers_are_not_compared_word_for_word() -> None:
    long = LETTERS.lengths.model_copy(update={"p50": 900, "trained_fraction": 0.4})
    for other in ({"format": "text"}, {"lengths": long}):
        with_answers = seconds(evaluations=0)
        assert seconds(evaluations=0, dataset=LETTERS.model_copy(update=other)) < with_answers / 2


@pytest.mark.parametrize(
    ("base", "hardware", "steps", "measured"),
    [(model_facts("demo", None, None), CPU, 429, 83), (GEMMA_9B, H100, 24, 135)],
    ids=["demo on two cores", "9B on an H100"],
)
def test_a_whole_run_takes_about_as_long_as_estimated(
    base: ModelFacts, hardware: Hardware, steps: int, measured: float
) -> None:
    """From the command to the end; without evaluations the second would have been 26 s (docs/LOG.md)."""
    request = TrainingRequest(max_steps=steps)
    plan = resolve(request, base, LETTERS, hardware, eval_split="test")
    assert plan.num_eval_rows == 200
    assert measured / 1.3 < plan.estimate.seconds < measured * 1.3


def test_truncated_rows_count_up_to_max_length_but_plain_text_counts_whole() -> None:
    lengths = LETTERS.lengths.model_copy(
        update={"p50": 18_000, "mean": 20_000.0, "p95": 40_000, "max": 60_000}
    )
    chats = LETTERS.model_copy(update={"lengths": lengths})
    assert seconds(dataset=chats) < seconds(dataset=chats, max_length=4096)
    assert seconds(dataset=chats) < seconds(dataset=chats.model_copy(update={"format": "text"})) / 5
