"""The smallest run that has everything: a random NF4 base of two layers, dropout, held-out rows, answers.

What is compared between a run that was broken and one that was not.
"""

import collections
import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.events import Event
from qlora_space.core.facts import DatasetFacts, Hardware, TokenLengths
from qlora_space.core.interruption import Interruption
from qlora_space.core.request import TrainingRequest
from qlora_space.data import open_source
from qlora_space.hub import model_facts
from qlora_space.model import adapter_sha256
from qlora_space.plan import Plan, resolve
from qlora_space.runs import EventLog, RunFolder, create_run, read_events
from qlora_space.train import train

STEPS = 6


@functools.cache
def tiny_base() -> Path:
    """A folder with a Qwen3 of two layers and 64 channels, random but always the same."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-base-"))
    demo = AutoConfig.from_pretrained(BASE_FOLDER)
    config = Qwen3Config(
        vocab_size=demo.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True,
        eos_token_id=demo.eos_token_id, pad_token_id=demo.pad_token_id, dtype="bfloat16",
    )  # fmt: skip
    for file in BASE_FOLDER.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copy(file, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def small_plan(**changed: object) -> Plan:
    """Six steps of 2 x 1 rows, a save after each, an evaluation after every third."""
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
    request = TrainingRequest(max_rows=40, max_length=128, max_steps=STEPS, eval_fraction=0.05)
    small = {
        "eval_steps": 3, "save_steps": 1, "num_samples": 0, "lora_dropout": 0.1, "learning_rate": 1e-2,
        "optim": "adamw_torch", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2,
        "load_best_model_at_end": False,
    }  # fmt: skip
    plan = resolve(request, model_facts(str(tiny_base()), None, None), dataset, here)
    return plan.model_copy(update=small | changed)


def small_run(home: Path, plan: Plan | None = None) -> RunFolder:
    return create_run(home / "runs", TrainingRequest(), plan or small_plan())


def go_on(run: RunFolder, interruption: Interruption | None = None, **heartbeat) -> Event:
    """One attempt in this process; returns its last event. Raises what the worker would report."""
    log = EventLog(run.events_file)
    try:
        return log.append(train(run, log.append, None, interruption, **heartbeat))
    finally:
        log.close()


def events_of(run: RunFolder) -> list[Event]:
    return read_events(run.events_file)[0]


@dataclass(frozen=True)
class Outcome:
    """What must not depend on interruptions."""

    numbers: dict[str, dict[int, float]]  # by metric and step
    adapter: str


def outcome(run: RunFolder) -> Outcome:
    """Also checks that steps done again gave what they gave before, and that no event is missing."""
    numbers: dict[str, dict[int, float]] = collections.defaultdict(dict)
    events = events_of(run)
    for event in events:
        if event.kind != "metric":
            continue
        for name in {"loss", "eval_loss", "grad_norm", "learning_rate"} & event.values.keys():
            value = numbers[name].setdefault(event.step, event.values[name])
            if value != event.values[name]:
                raise AssertionError(
                    f"{name} of step {event.step}: {value}, then {event.values[name]}"
                )
    if [event.seq for event in events] != list(range(len(events))):
        raise AssertionError("events are missing or doubled")
    return Outcome(dict(numbers), adapter_sha256(run.adapter_folder))
