"""A few demo rows, prepared, on the real quantized base: what a run has in memory before its first step."""

from dataclasses import dataclass

import pytest
from datasets import Dataset
from peft import PeftModel

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.facts import DatasetFacts, Hardware, TokenLengths
from qlora_space.core.request import TrainingRequest
from qlora_space.data import Prepared, load_tokenizer, prepare
from qlora_space.hub import model_facts
from qlora_space.model import add_adapter, load_base
from qlora_space.plan import Plan, resolve
from qlora_space.train import loop
from qlora_space.train.trainer import RunTrainer


@dataclass(frozen=True)
class Session:
    plan: Plan
    prepared: Prepared
    tokenizer: object
    model: PeftModel
    trainer: RunTrainer
    rows: Dataset


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
    rows = Dataset.from_file(str(prepared.train_file))
    return Session(
        plan, prepared, tokenizer, model, RunTrainer(model, tokenizer, plan, rows, folder), rows
    )


@pytest.fixture(params=["at once", "late"])
def telling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A step is told when it is done, as on a CPU, or when the next one has begun, as on a GPU."""
    monkeypatch.setattr(loop, "tells_late", lambda trainer, plan: request.param == "late")
    return request.param
