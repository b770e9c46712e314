"""An adapter of a low-bit base for the 16-bit one: what it learned, without the repair that it began as."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from qlora_space.model.base import load_base
from qlora_space.runs import RunFolder
from qlora_space.runs.export import export_for_16_bit
from tests.base_trial import try_base
from tests.experts import tiny_mixtures
from tests.tiny_families import build

LINEAR = "base_model.model.model.layers.0.self_attn.q_proj"
EXPERTS = "base_model.model.model.layers.0.mlp.experts"


def loaded(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(load_base(base, 16, "cpu"), adapter)


def trained(folder: Path, home: Path, **asked: Any) -> RunFolder:
    trial = try_base(folder, home, group_size=32, **asked)
    assert "train" in trial.done, (trial.refused, trial.crashed)
    (path,) = (home / "runs").iterdir()
    return RunFolder(path)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("asked", [{}, {"use_rslora": True, "target_modules": "attention"}])
def test_the_repair_is_taken_out_at_the_scale_of_the_adapter(tmp_path: Path, asked: dict) -> None:
    base = build("qwen3", tmp_path / "base")
    run = trained(base, tmp_path, bits=2, **asked)
    export_for_16_bit(run, tmp_path / "out")
    deltas = [
        loaded(base, folder).get_submodule(LINEAR).get_delta_weight("default").float()
        for folder in (run.adapter_folder, run.start_folder, tmp_path / "out")
    ]
    assert deltas[1].abs().max() > 0
    torch.testing.assert_close(deltas[2], deltas[0] - deltas[1], rtol=1e-3, atol=1e-5)


@pytest.mark.timeout(300)
def test_experts_which_are_not_repaired_keep_what_they_learned(tmp_path: Path) -> None:
    base = tiny_mixtures.build("qwen3-moe", tmp_path / "base")
    run = trained(base, tmp_path, bits=3)
    export_for_16_bit(run, tmp_path / "out")
    before, after = (loaded(base, folder) for folder in (run.adapter_folder, tmp_path / "out"))
    wrappers = [model.get_submodule(EXPERTS) for model in (before, after)]
    torch.testing.assert_close(
        *(w.lora_B["default"].weight * w.scaling["default"] for w in wrappers), rtol=0, atol=0
    )
