"""The embedded base, block by block: what streams through is what the whole model does."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from qlora_space.demo import BASE_FOLDER
from qlora_space.errors import ModelError
from qlora_space.lowbit.build import LowBitBase, Recipe, put_starts, quantize_base
from qlora_space.lowbit.checkpoint import load_lowbit, save_lowbit
from qlora_space.lowbit.gate import Quality, quality, verdict
from qlora_space.lowbit.heal import HealRecipe, heal
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.shards import Shards, skeleton
from qlora_space.lowbit.stream import Stream, Windows

CALIBRATION = 6
GROUP = 32


@pytest.fixture(scope="module")
def windows() -> Windows:
    ids = torch.randint(10, 400, (CALIBRATION + 2, 48), generator=torch.Generator().manual_seed(0))
    is_text = torch.ones_like(ids, dtype=torch.bool)
    is_text[2, 30:] = False
    ids[2, 30:] = 0
    return Windows(ids, is_text, CALIBRATION)


@pytest.fixture(scope="module")
def built(windows: Windows) -> LowBitBase:
    return build(windows, Recipe(bits=2, group_size=GROUP, r=8))


def build(windows: Windows, recipe: Recipe) -> LowBitBase:
    return quantize_base(BASE_FOLDER, recipe, windows, device="cpu", dtype=torch.float32)


def adapted(base: LowBitBase) -> torch.nn.Module:
    config = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base.model, config)
    put_starts(model, base.starts)
    return model.eval()


@torch.no_grad()
def test_the_stream_ends_in_the_hidden_states_of_the_whole_model(
    built: LowBitBase, windows: Windows
) -> None:
    whole = AutoModelForCausalLM.from_pretrained(BASE_FOLDER, dtype=torch.float32).eval()
    wanted = whole.model(input_ids=windows.ids).last_hidden_state
    torch.testing.assert_close(built.teacher, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_covariances_are_of_text_and_not_of_padding_or_held_out_windows(windows: Windows) -> None:
    whole = AutoModelForCausalLM.from_pretrained(BASE_FOLDER, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    down = whole.model.layers[0].mlp.down_proj
    down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    whole(input_ids=windows.ids)
    x = seen[0][:CALIBRATION][windows.is_text[:CALIBRATION]].double()
    stream = Stream(skeleton(BASE_FOLDER), Shards(BASE_FOLDER), windows, "cpu", torch.float32)
    block = next(iter(stream))
    found = block.covariances
    torch.testing.assert_close(
        found["mlp.down_proj"].double(), x.T @ x / len(x), atol=1e-5, rtol=1e-3
    )
    assert found["self_attn.q_proj"] is found["self_attn.v_proj"]
    assert found["self_attn.q_proj"] is not found["self_attn.o_proj"]


def test_every_linear_of_every_block_is_packed_and_no_start_is_worse(built: LowBitBase) -> None:
    layers = [m for m in built.model.modules() if isinstance(m, LowBitLinear)]
    assert len(layers) == 7 * built.model.config.num_hidden_layers == len(built.errors)
    assert all(e.started < e.quantized for e in built.errors.values())
    assert not any(p.is_meta for p in built.model.parameters())
    assert not any(p.requires_grad for p in built.model.parameters() if p.numel())


def test_a_saved_base_has_the_same_logits(
    windows: Windows, built: LowBitBase, tmp_path: Path
) -> None:
    save_lowbit(built.model, tmp_path)
    again = load_lowbit(tmp_path, "cpu", torch.float32)
    with torch.no_grad():
        wanted = built.model(input_ids=windows.ids).logits
        torch.testing.assert_close(again(input_ids=windows.ids).logits, wanted, atol=0, rtol=0)


def test_a_folder_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelError, match="no low-bit base"):
        load_lowbit(BASE_FOLDER, "cpu", torch.float32)


def test_a_start_brings_it_closer_and_a_heal_closer_still(windows: Windows) -> None:
    base = build(windows, Recipe(bits=2, group_size=GROUP, r=8))
    head = base.model.get_output_embeddings()
    what = (windows.ids, windows.is_text, base.teacher)
    quantized = quality(base.model, *what, head)
    model = adapted(base)
    started = quality(model, *what, head)
    assert started.kl < quantized.kl
    heal(model, *what, head, HealRecipe(steps=12, rows_per_step=8, learning_rate=2e-3))
    healed = quality(model, *what, head)
    assert healed.kl < 0.9 * started.kl
    assert not model.training


def test_the_gate_is_red_for_a_broken_base_and_names_what_was_not_tried() -> None:
    assert not verdict(30.0, Quality(67.0, 0.7, 0.5), (), 2).is_broken
    for broken in (Quality(301.0, 2.0, 0.5), Quality(60.0, 1.0, 0.2), Quality(float("inf"), 9.0, 0.9),
                   Quality(float("nan"), 1.0, 0.9)):  # fmt: skip
        found = verdict(30.0, broken, ("init",), 2)
        assert found.is_broken
        assert found.remedies[0].startswith("heal")
        assert "At 2 bits this base is broken" in found.why
