"""What the page promises is what the run then has: rows, tokens, held-out rows, steps, evaluations."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from qlora_space.core.facts import Hardware, ModelFacts
from qlora_space.core.request import TrainingRequest
from qlora_space.data import Budget, inspect_dataset, prepare
from qlora_space.hub import model_facts
from qlora_space.plan import Plan, resolve
from qlora_space.runs import create_run
from qlora_space.train.batches import total_steps
from tests.data.conftest import CHATML, facts_of, make_tokenizer
from tests.train.small import events_of, go_on, tiny_base

HERE = Hardware(name="CPU", device="cpu", memory_gib=16, free_gib=16, cpu_cores=1, disk_free_gib=10)
WORDS = (
    "Hello",
    "there",
    "how",
    "are",
    "you",
    "today",
    "What",
    "is",
    "the",
    "capital",
    "of",
    "France",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    folder = tmp_path_factory.mktemp("base")
    make_tokenizer(CHATML, eos="<|im_end|>").save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    return facts_of(folder)


def plan_of(request: TrainingRequest, base: ModelFacts, rows: int = 2000) -> Plan:
    """As the app makes it."""
    found = inspect_dataset(request, base, Path(base.id), None, Budget(rows), allow_local=True)
    split, columns = found.eval_split, found.mapping
    return resolve(request, base, found.dataset, HERE, eval_split=split, columns=columns)


class RandomRequest:
    """Rows of any length, repeated, unusable or too long, and options that decide which of them are used."""

    def __init__(self, seed: int, folder: Path, base: ModelFacts) -> None:
        self._random, self._folder = random.Random(seed), folder
        chosen = self._random
        self._is_text = chosen.random() < 0.3
        rows = [self._row() for _ in range(chosen.choice((3, 15, 40, 160)))]
        rows += chosen.choices(rows, k=chosen.choice((0, 0, 3, 40)))
        chosen.shuffle(rows)
        part, own = ("text", "") if self._is_text else ("prompt", "completion")
        usable = [{part: f"Hello {n}", **({own: "fine"} if own else {})} for n in "ab"]
        rows = [*usable, *rows]
        self._write("train", rows)
        if has_split := chosen.random() < 0.4:
            own = [self._row() for _ in range(chosen.choice((1, 15, 230)))]
            self._write("validation", [*own, *rows[: chosen.randint(0, 4)]])
        options = {
            "max_length": chosen.choice((None, 64, 128, 300)),
            "packing": chosen.random() < 0.6,
            "text_overlap_tokens": chosen.choice((0, 16)),
            "seed": chosen.randint(0, 99),
            "eval_fraction": chosen.choice((0, 0.1, 0.5) if has_split else (None, 0, 0.07, 0.5)),
            "max_rows": chosen.choice((None, None, 10, 70)),
            "drop_truncated": chosen.random() < 0.5,
            "deduplicate": chosen.random() < 0.5,
            "num_train_epochs": chosen.choice((None, 0.3, 1.0, 2.5)),
            "max_steps": chosen.choice((None, None, None, 7)),
            "eval_steps": chosen.choice((None, 5)),
            "per_device_train_batch_size": chosen.choice((None, 3)),
            "gradient_accumulation_steps": chosen.choice((None, 2)),
        }
        if has_split and chosen.random() < 0.8:
            options["eval_fraction"] = None
        self.request = TrainingRequest(dataset=str(folder), base=base.id, **options)

    def _row(self) -> dict[str, Any]:
        sizes = [self._random.choice((1, 4, 12, 40, 150)) for _ in range(2)]
        asked, answer = (" ".join(self._random.choices(WORDS, k=size)) for size in sizes)
        if self._is_text:
            return {"text": f"{asked}. {answer}"}
        return {"prompt": asked, "completion": answer if self._random.random() < 0.95 else ""}

    def _write(self, split: str, rows: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (self._folder / f"{split}.jsonl").write_text(lines)


@pytest.mark.parametrize("seed", range(40))
def test_every_number_of_a_plan_is_that_of_the_prepared_data(
    seed: int, base: ModelFacts, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    plan = plan_of(RandomRequest(seed, data, base).request, base)
    prepared = prepare(plan, tmp_path / "prepared")
    made, planned = prepared.manifest, plan.estimate
    counts = plan.dataset.counts
    assert counts is not None
    assert planned.is_exact
    assert (planned.rows, planned.row_tokens) == (made.rows_used, made.tokens)
    assert planned.held_out_rows == len(prepared.eval_examples())
    assert (counts.packed_rows, counts.held_out_documents) == (made.packed_rows, made.eval_rows)
    steps = total_steps(plan, made.packed_rows)
    assert planned.steps == steps
    due = [step for step in range(steps + 1) if step % plan.eval_steps == 0 or step == steps]
    assert planned.evaluations == (len(due) if made.eval_rows else 0)


def test_where_every_held_out_row_is_also_trained_on_no_evaluation_is_promised(
    base: ModelFacts, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(3 * (json.dumps({"text": "Hello there"}) + "\n"))
    dataset = str(tmp_path / "rows.jsonl")
    plan = plan_of(TrainingRequest(dataset=dataset, base=base.id, eval_fraction=0.5), base)
    assert not prepare(plan, tmp_path / "prepared").manifest.eval_rows
    assert (plan.estimate.held_out_rows, plan.estimate.evaluations) == (0, 0)
    assert {c.name: c.why for c in plan.choices}["eval_steps"] == "no row is held out"


def test_what_only_a_sample_tells_is_called_an_estimate_and_is_near(
    base: ModelFacts, tmp_path: Path
) -> None:
    chosen = random.Random(0)
    lines = [
        json.dumps(
            {
                "prompt": " ".join(chosen.choices(WORDS, k=chosen.randint(1, 60))),
                "completion": "fine",
            }
        )
        for _ in range(1000)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    request = TrainingRequest(
        dataset=str(tmp_path / "rows.jsonl"), base=base.id, max_length=128, num_train_epochs=2
    )
    plan = plan_of(request, base, rows=200)
    made = prepare(plan, tmp_path / "prepared").manifest
    planned = plan.estimate
    assert not planned.is_exact
    assert planned.held_out_rows == plan.num_eval_rows == pytest.approx(made.eval_rows, abs=3)
    assert planned.rows == pytest.approx(made.rows_used, rel=0.02)
    assert planned.row_tokens == pytest.approx(made.tokens, rel=0.1)
    assert planned.steps == pytest.approx(total_steps(plan, made.packed_rows), rel=0.1)


def test_the_first_rows_of_a_large_dataset_are_all_that_a_run_of_them_needs(
    base: ModelFacts, tmp_path: Path
) -> None:
    lines = [json.dumps({"prompt": f"{i}?", "completion": "yes"}) for i in range(300)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    request = TrainingRequest(dataset=str(tmp_path / "rows.jsonl"), base=base.id, max_rows=50)
    plan = plan_of(request, base, rows=100)
    made = prepare(plan, tmp_path / "prepared").manifest
    assert plan.estimate.is_exact
    assert (plan.estimate.rows, plan.estimate.held_out_rows) == (made.rows_used, made.eval_rows)


@pytest.mark.parametrize("packing", [True, False])
def test_a_run_does_what_its_plan_says(packing: bool, tmp_path: Path) -> None:
    base = model_facts(str(tiny_base()), None, None)
    rows = [{"prompt": f"{i} + {i}?", "completion": str(2 * i)} for i in range(30)]
    rows += rows[:5]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    request = TrainingRequest(
        dataset=str(file), base=base.id, max_length=64, packing=packing, num_train_epochs=1.5,
        deduplicate=True, per_device_train_batch_size=4, eval_steps=2, num_samples=0, eval_fraction=0.1,
    )  # fmt: skip
    plan = plan_of(request, base)
    run = create_run(tmp_path / "runs", request, plan)
    assert go_on(run).kind == "finished"
    metrics = [event for event in events_of(run) if event.kind == "metric"]
    losses = [event for event in metrics if "eval_loss" in event.values]
    report = run.report()
    assert report is not None
    assert metrics[-1].total_steps == metrics[-1].step == plan.estimate.steps
    assert len(losses) == plan.estimate.evaluations
    assert (report.steps, report.num_eval_rows) == (plan.estimate.steps, plan.num_eval_rows)
