"""The embedded base, block by block: what streams through is what the whole model does."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PreTrainedConfig,
)

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.errors import ModelError
from qlora_space.lowbit.architecture import empty_model, lm_logits
from qlora_space.lowbit.build import LowBitBase, Recipe, pack_base, quantize_base
from qlora_space.lowbit.checkpoint import load_lowbit, save_lowbit
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.repair import add_repair
from qlora_space.lowbit.shards import Shards
from qlora_space.lowbit.stream import CalibrationStream
from qlora_space.lowbit.windows import Windows
from tests.lowbit.conftest import CALIBRATION, GROUP

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0,
}  # fmt: skip


@torch.no_grad()
def test_the_stream_ends_in_the_hidden_states_of_the_whole_model(
    built: LowBitBase, windows: Windows
) -> None:
    whole = AutoModelForCausalLM.from_pretrained(BASE_FOLDER, dtype=torch.float32).eval()
    wanted = whole.model(input_ids=windows.ids).last_hidden_state
    torch.testing.assert_close(built.teacher_states, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(logits_scaling=8.0),
        CohereConfig(logit_scale=0.06),
        Gemma2Config(final_logit_softcapping=0.3, head_dim=16),
    ],
    ids=lambda config: config.model_type,
)
@torch.no_grad()
def test_logits_are_scaled_as_the_model_scales_them(config: PreTrainedConfig) -> None:
    config.update(TINY)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(12)[None]
    states = model.get_decoder()(input_ids=ids).last_hidden_state
    wanted = model(input_ids=ids).logits
    torch.testing.assert_close(lm_logits(model, states), wanted)
    assert not torch.allclose(model.get_output_embeddings()(states), wanted, rtol=0.01)


@torch.no_grad()
def test_the_stream_caps_attention_as_the_model_does(windows: Windows, tmp_path: Path) -> None:
    """Of a sliding layer and a full one, whose masks the decoder hands over."""
    torch.manual_seed(0)
    tiny = TINY | {"vocab_size": 512, "num_hidden_layers": 2, "head_dim": 16, "sliding_window": 8}
    config = Gemma2Config(**tiny, attn_logit_softcapping=0.5)
    whole = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for weight in whole.parameters():
        weight.data = (weight.data * 10).bfloat16().float()
    whole.save_pretrained(tmp_path)
    stream = CalibrationStream(
        empty_model(tmp_path), Shards(tmp_path), windows, "cpu", torch.float32
    )
    for _ in stream:
        pass
    wanted = whole.model(input_ids=windows.ids).last_hidden_state
    torch.testing.assert_close(stream.hidden_states, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_covariances_are_of_text_and_not_of_padding_or_held_out_windows(windows: Windows) -> None:
    whole = AutoModelForCausalLM.from_pretrained(BASE_FOLDER, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    down = whole.model.layers[0].mlp.down_proj
    down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    whole(input_ids=windows.ids)
    x = seen[0][:CALIBRATION][windows.is_text[:CALIBRATION]].double()
    stream = CalibrationStream(
        empty_model(BASE_FOLDER), Shards(BASE_FOLDER), windows, "cpu", torch.float32
    )
    block = next(iter(stream))
    found = block.covariances
    torch.testing.assert_close(
        found["mlp.down_proj"].double(), x.T @ x / len(x), atol=1e-5, rtol=1e-3
    )
    assert found["self_attn.q_proj"] is found["self_attn.v_proj"]
    assert found["self_attn.q_proj"] is not found["self_attn.o_proj"]


def test_every_linear_of_every_block_is_packed_and_every_repair_helps(built: LowBitBase) -> None:
    layers = [m for m in built.model.modules() if isinstance(m, LowBitLinear)]
    assert len(layers) == 7 * built.model.config.num_hidden_layers == len(built.errors)
    assert all(e.repaired < e.quantized for e in built.errors.values())
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_not_packed_is_stored_in_16_bits_whatever_it_was_computed_in(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """Those of the checkpoint; fp32 is rounded before anything is computed with it, as on a GPU."""
    torch.manual_seed(0)
    config = Gemma2Config(**TINY | {"hidden_size": 64, "intermediate_size": 96}, head_dim=32)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(tmp_path / "whole")
    config_file = tmp_path / "whole" / "config.json"
    config_file.write_text(config_file.read_text().replace('"dtype"', '"other"'))  # not stated
    made = pack_base(tmp_path / "whole", 3, GROUP, "cpu", torch.float32)
    save_lowbit(made, tmp_path / "packed")
    kinds = {t.dtype for t in load_file(tmp_path / "packed" / "model.safetensors").values()}
    assert kinds <= {torch.uint8, torch.float16, torch.bfloat16}
    again = load_lowbit(tmp_path / "packed", "cpu", torch.float32)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, made(input_ids=ids).logits)


def test_a_folder_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelError, match="no low-bit base"):
        load_lowbit(BASE_FOLDER, "cpu", torch.float32)


def test_a_base_with_an_adapter_in_it_is_not_saved_as_a_base(
    built: LowBitBase, tmp_path: Path
) -> None:
    base = replace(built, model=copy.deepcopy(built.model))
    add_repair(base)
    with pytest.raises(ModelError, match="has an adapter in it"):
        save_lowbit(base.model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_calibration_that_misleads_is_not_followed() -> None:
    """Of one token that is repeated: what it does not show, rounding by it leaves to chance."""
    generator = torch.Generator().manual_seed(0)
    same = torch.full((2, 48), 100)
    ids = torch.cat([same, torch.randint(10, 400, (2, 48), generator=generator)])
    misleading = Windows(ids, torch.ones_like(ids, dtype=torch.bool), len(same))
    recipe = Recipe(bits=3, group_size=128, init="zero")
    found = quantize_base(BASE_FOLDER, recipe, misleading, device="cpu", dtype=torch.float32)
    by_weights = pack_base(BASE_FOLDER, 3, 128, "cpu", torch.float32)
    for name, layer in found.model.named_modules():
        if isinstance(layer, LowBitLinear):
            assert torch.equal(layer.codes, by_weights.get_submodule(name).codes)  # type: ignore[arg-type]
    unguarded = Windows(ids[:2], misleading.is_text[:2], 2)
    led = quantize_base(BASE_FOLDER, recipe, unguarded, device="cpu", dtype=torch.float32)
    evaluator = found.evaluator()
    assert evaluator.evaluate(led.model).kl > evaluator.evaluate(found.model).kl
    assert found.errors != led.errors
