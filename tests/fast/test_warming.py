"""A layer of random weights stands for those of a base: the same kinds of modules, both steps agree on it."""

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from transformers.models.auto import CONFIG_MAPPING

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.fast import attach, warm_up
from qlora_space.fast.warming import random_base
from tests.fast.test_model import EXTRA, TINY


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "phi3"])
def test_a_random_base_has_the_layers_asked_for_in_four_bits_and_takes_the_fast_step(
    name: str,
) -> None:
    base = random_base(
        CONFIG_MAPPING[name](**TINY | {"num_hidden_layers": 3}, **EXTRA[name]), "cpu"
    )
    assert len(base.model.layers) == 3
    assert not any(p.is_meta for p in base.parameters())
    linears = [m for m in base.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert all(isinstance(m, Linear4bit) and m.weight.quant_state.nested for m in linears)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    assert "3 fused layers" in attach(get_peft_model(base, lora), on_cpu=True).text
    assert torch.get_default_dtype() == torch.float32


def test_warming_up_ends_and_a_folder_without_a_base_costs_nothing(tmp_path: Path) -> None:
    thread = warm_up(BASE_FOLDER, 4, "cpu")
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()
    assert warm_up(tmp_path, 4, "cpu") is None
