"""A few demo rows, prepared, on the real quantized base: what a run has in memory before its first step."""

from dataclasses import dataclass

import pytest
from datasets import Dataset
from peft import PeftModel
from transformers import Trainer

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.facts import DatasetFacts, Hardware, TokenLengths
from qlora_space.core.interruption import Interruption
from qlora_space.core.request import TrainingRequest
from qlora_space.data import Prepared, load_tokenizer, prepare
from qlora_space.hub import model_facts
from qlora_space.model import add_adapter, load_base
from qlora_space.plan import Plan, resolve
from qlora_space.runs import RunFolder
from qlora_space.train.base_results import BaseResults
from qlora_space.train.batches import PackedCollator, TrainingRows, total_steps
from qlora_space.train.context import RunContext
from qlora_space.train.data_parallel import Ranks
from qlora_space.train.evaluate import Evaluator
from qlora_space.train.held_out import HeldOut, held_out
from qlora_space.train.snapshot import TrainState
from qlora_space.train.step import FusedStep, PlainStep, Step, make_step
from qlora_space.train.trl_trainer import make_trainer, prepare_for_training


@dataclass(frozen=True)
class Session:
    """What is in memory when a run is about to be trained."""

    context: RunContext
    prepared: Prepared
    tokenizer: object
    model: PeftModel
    trainer: Trainer
    step: Step
    state: TrainState
    rows: TrainingRows

    @property
    def plan(self) -> Plan:
        return self.context.plan

    def evaluator(self, held: HeldOut | None = None, known: BaseResults | None = None) -> Evaluator:
        held = held or held_out(self.tokenizer, self.prepared, self.plan)  # type: ignore[arg-type]
        known = known or BaseResults(None)
        return Evaluator(
            self.context,
            self.state,
            self.step,
            self.rows,
            self.tokenizer,
            held,
            known,  # type: ignore[arg-type]
        )


def demo_plan(bits: int = 4) -> Plan:
    from qlora_space.data import open_source

    lengths = TokenLengths(
        p50=70, p95=90, max=100, mean=70, truncated_fraction=0, trained_fraction=0.4
    )
    dataset = DatasetFacts(
        id="demo", sha=open_source("demo").sha, format="messages", num_rows=1000, is_exact=True,
        lengths=lengths,
    )  # fmt: skip
    here = Hardware(
        name="CPU", device="cpu", memory_gib=8, free_gib=8, cpu_cores=1, disk_free_gib=9
    )
    request = TrainingRequest(
        max_rows=40, max_length=256, max_steps=2, bits=bits, eval_fraction=0.2
    )  # type: ignore[arg-type]
    return resolve(request, model_facts("demo", None, None), dataset, here)


@pytest.fixture(scope="package")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    plan, folder = demo_plan(), tmp_path_factory.mktemp("run")
    prepared = prepare(plan, folder / "data")
    tokenizer = load_tokenizer(BASE_FOLDER)
    model = add_adapter(load_base(BASE_FOLDER, 4, "cpu"), plan)
    dataset = Dataset.from_file(str(prepared.train_file))
    rows = TrainingRows(dataset, PackedCollator(pad_token_id=tokenizer.pad_token_id or 0))
    context = RunContext(RunFolder(folder), plan, print, Interruption(), lambda: None)
    trainer = make_trainer(model, tokenizer, plan, rows, folder)
    alone, key = Ranks(context.run, context.check_in), prepared.manifest.key
    step, _ = make_step(trainer, model, plan, rows, folder / "policies.json", alone, key)
    state = prepare_for_training(trainer, plan, total_steps(plan, len(rows)))
    return Session(context, prepared, tokenizer, model, trainer, step, state, rows)


@pytest.fixture(params=["immediate", "deferred"])
def metrics_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A step is reported when it is done, as on a CPU, or when the next one has been launched, as on a GPU."""
    for step in (PlainStep, FusedStep):
        monkeypatch.setattr(step, "defers_metrics", request.param == "deferred")
    return request.param
