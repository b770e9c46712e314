"""A low-bit run starts once: what it started from stays, whatever became of the packed base."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_space.app.actions import Actions
from qlora_space.core.comparison import Question
from qlora_space.core.errors import ModelError, RunError
from qlora_space.core.interruption import Interruption
from qlora_space.core.settings import Settings
from qlora_space.data import Prepared, load_tokenizer, prepare
from qlora_space.model import WEIGHTS_FILE
from qlora_space.model import calibration_text as calibration
from qlora_space.runs import RunFolder
from qlora_space.train.context import RunContext
from qlora_space.train.load import load_model
from qlora_space.train.snapshot import adapter_weights
from tests.train.small import small_plan, small_run, tiny_base


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CALIBRATION_TOKENS", {"cpu": 512})
    monkeypatch.setattr(calibration, "_HELDOUT_TOKENS", {"cpu": 128})


def low_bit_run(home: Path, init: str = "eora", seed: int = 42) -> RunFolder:
    return small_run(home, small_plan(bits=3, group_size=32, init=init, r=4, seed=seed))


def started(run: RunFolder, prepared: Prepared) -> dict[str, torch.Tensor]:
    tokenizer = load_tokenizer(tiny_base())
    context = RunContext(run, run.plan(), lambda event: None, Interruption(), lambda: None)
    model = load_model(context, tiny_base(), prepared, tokenizer)
    return {name: w.detach().clone() for name, w in adapter_weights(model).items()}


def test_a_start_that_is_made_again_does_not_replace_the_first(tmp_path: Path) -> None:
    run = low_bit_run(tmp_path)
    prepared = prepare(run.plan(), run.data_folder)
    made = started(run, prepared)
    file = run.start_folder / WEIGHTS_FILE
    first = {name: weight + 1 for name, weight in load_file(file).items()}
    save_file(first, file)  # as if made elsewhere: no two machines round alike
    shutil.rmtree(run.quantized_folder)
    again = started(run, prepared)
    assert load_file(file).keys() == made.keys()
    assert all(torch.equal(load_file(file)[name], first[name]) for name in first)
    assert all(torch.equal(again[name], first[name]) for name in first)
    run.packed_base_file.write_text("of another version")
    with pytest.raises(ModelError, match="packed by another version"):
        started(run, prepared)


def test_a_start_that_is_drawn_follows_the_seed(tmp_path: Path) -> None:
    runs = [low_bit_run(tmp_path, init="zero", seed=seed) for seed in (1, 2)]
    prepared = prepare(runs[0].plan(), runs[0].data_folder)
    first, other = (started(run, prepared) for run in runs)
    drawn = [name for name in first if "lora_A" in name]
    assert drawn
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_an_srr_run_without_its_packed_base_is_not_compared(tmp_path: Path) -> None:
    run = low_bit_run(tmp_path, init="srr")
    with pytest.raises(RunError, match="no recipe packs it again"):
        Actions(Settings(home=tmp_path)).compare(run, [Question(prompt="Hello")])
