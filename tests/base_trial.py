"""Everything that a person does with a base, on a tiny checkpoint: from the plan to loading it elsewhere."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from qlora_space.core.comparison import CompareRequest, Done, Question, Sampling
from qlora_space.core.errors import QloraSpaceError
from qlora_space.core.events import Event
from qlora_space.core.facts import DatasetFacts, Hardware, TokenLengths
from qlora_space.core.options import Format
from qlora_space.core.request import TrainingRequest
from qlora_space.data import open_source
from qlora_space.generate.resident import ResidentModel
from qlora_space.hub import model_facts
from qlora_space.hub.card.how_to_load import how_to_load
from qlora_space.model import WEIGHTS_FILE, load_adapter
from qlora_space.model.base import forbid_repacking
from qlora_space.model.load import load_frozen_base
from qlora_space.plan import Plan, resolve
from qlora_space.runs import EventLog, RunFolder, create_run, read_events
from qlora_space.train import train

STAGES = ("plan", "train", "compare", "reload")
IDS = torch.arange(10, 60)[None]
_TOLERANCE = 0.1  # of all logits' norm: the card computes in bf16, a CPU here may do so in fp32


@dataclass
class Trial:
    """How far it came. `refused`: one of our sentences; `crashed`: any other exception."""

    done: list[str] = field(default_factory=list)
    refused: str = ""
    crashed: str = ""
    plan: Plan | None = None
    events: list[Event] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return self.done == list(STAGES)


def try_base(folder: Path, home: Path, **options: Any) -> Trial:
    """All stages in order, up to the first that ends with an error. `options` are those of a TrainingRequest."""
    trial = Trial()
    try:
        for stage in _stages(trial, folder, home, options):
            trial.done.append(stage)
    except QloraSpaceError as error:
        trial.refused = str(error)
    except Exception as error:
        trial.crashed = f"{type(error).__name__}: {error}"[:300]
    return trial


def _stages(trial: Trial, folder: Path, home: Path, options: dict[str, Any]) -> Iterator[str]:
    trial.plan = plan = plan_of(folder, **options)
    yield "plan"
    run = create_run(home / "runs", TrainingRequest(**options), plan)
    log = EventLog(run.events_file)
    try:
        log.append(train(run, log.append, None))
    finally:
        log.close()
        trial.events = read_events(run.events_file)[0]
    yield "train"
    _compare(run, plan)
    yield "compare"
    _reload(run, plan, folder)
    yield "reload"


def plan_of(folder: Path, **options: Any) -> Plan:
    """Two steps on demo rows, some of them held out; an adapter that changes something."""
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
    small = {"max_rows": 24, "max_length": 128, "max_steps": 2, "eval_fraction": 0.2, "r": 4}
    request = TrainingRequest.model_validate({**small, **options})
    plan = resolve(request, model_facts(str(folder), None, None), dataset, here)
    return plan.model_copy(
        update={"learning_rate": 1e-2, "eval_steps": 1, "num_samples": 1, "save_steps": 1}
    )


def _compare(run: RunFolder, plan: Plan) -> None:
    request = CompareRequest(
        base=plan.base, bits=plan.bits, adapter_folders=(str(run.adapter_folder),),
        packed_folder=str(run.packed_folder) if plan.is_low_bit else "", group_size=plan.group_size,
        questions=(Question(prompt="Hello, this is Mira from Oslo."),), format=Format.MESSAGES,
        sampling=Sampling(max_new_tokens=4),
    )  # fmt: skip
    done = list(ResidentModel().compare(request, None))[-1]
    assert isinstance(done, Done)
    assert done.same_base, "the base pane is not the base"


@torch.no_grad()
def _reload(run: RunFolder, plan: Plan, folder: Path) -> None:
    """The code of the card loads every weight of the adapter, and gives the logits that it has here."""
    section = how_to_load(plan, "me/adapter", for_16_bit=False, with_base=False)
    theirs = run_card(section, folder, run.adapter_folder)
    stored, got = load_file(run.adapter_folder / WEIGHTS_FILE), get_peft_model_state_dict(theirs)
    assert got.keys() == stored.keys(), "the adapter has other names elsewhere"
    assert all(torch.equal(got[name].float(), stored[name]) for name in stored)
    if not plan.is_low_bit:
        ours = load_adapter(
            load_frozen_base(plan.base, folder, plan.bits, "cpu"), run.adapter_folder
        )
        wanted, logits = (logits_of(model) for model in (ours, theirs))
        off = float((wanted - logits).norm() / wanted.norm())
        assert off < _TOLERANCE, f"logits elsewhere are off by {off:.1%}"
        with ours.disable_adapter():
            alone = logits_of(ours)
        assert not torch.equal(alone, wanted), "the adapter changes nothing"


def run_card(section: str, folder: Path, adapter: Path) -> Any:
    """The model that a card's code makes, with what is here in the places of base and adapter."""
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    code = code.replace("path/to/the/base", str(folder)).replace("me/adapter", str(adapter))
    names: dict[str, Any] = {}
    exec(code, names)
    forbid_repacking(names["model"])  # with DoRA the repacked weights are read as if they were not
    return names["model"].eval()


@torch.no_grad()
def logits_of(model: PreTrainedModel | Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Of one row of ids, in fp32."""
    return model.eval()(input_ids=ids, use_cache=False).logits.float()
