"""The embedded base, block by block: what streams through is what the whole model does."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
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
from qlora_space.core.events import Gate, QualityPoint
from qlora_space.lowbit.build import LowBitBase, Recipe, pack_base, put_starts, quantize_base
from qlora_space.lowbit.checkpoint import load_lowbit, save_lowbit
from qlora_space.lowbit.gate import ReferenceEvaluator, gate_of, refuse_broken
from qlora_space.lowbit.heal import HealRecipe, heal
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.shards import Shards, logits_of, skeleton
from qlora_space.lowbit.stream import Stream, Windows
from qlora_space.runs import Quality

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0,
}  # fmt: skip
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
    torch.testing.assert_close(logits_of(model, states), wanted)
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
    stream = Stream(skeleton(tmp_path), Shards(tmp_path), windows, "cpu", torch.float32)
    for _ in stream:
        pass
    wanted = whole.model(input_ids=windows.ids).last_hidden_state
    torch.testing.assert_close(stream.hidden, wanted, atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_not_packed_is_stored_in_16_bits_whatever_it_was_computed_in(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """Those of the checkpoint; fp32 is rounded before anything is computed with it, as on a GPU."""
    torch.manual_seed(0)
    config = Gemma2Config(**TINY | {"hidden_size": 64, "intermediate_size": 96}, head_dim=32)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(tmp_path / "whole")
    config_file = tmp_path / "whole" / "config.json"
    config_file.write_text(config_file.read_text().replace('"dtype"', '"other"'))  # not told
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


def test_a_start_brings_it_closer_and_a_heal_closer_still(
    windows: Windows, built: LowBitBase
) -> None:
    base = replace(built, model=copy.deepcopy(built.model))
    evaluator = ReferenceEvaluator.of(windows, base.teacher, base.model)
    assert evaluator.reference().ppl > 1
    quantized = evaluator.measure(base.model, "quantized")
    model = adapted(base)
    started = evaluator.measure(model, "start")
    assert started.kl < quantized.kl
    every = replace(windows, calibration=len(windows.ids))
    heal(model, every, base.teacher, HealRecipe(steps=12, tokens_per_step=400, learning_rate=2e-3))
    healed = evaluator.measure(model, "healed")
    assert healed.kl < 0.9 * started.kl
    assert not model.training


def test_the_yardstick_says_what_the_whole_model_says(windows: Windows, built: LowBitBase) -> None:
    whole = AutoModelForCausalLM.from_pretrained(BASE_FOLDER, dtype=torch.float32).eval()
    evaluator = ReferenceEvaluator.of(windows, built.teacher, whole)
    own, reference = evaluator.measure(whole, "quantized"), evaluator.reference()
    assert own.ppl == pytest.approx(reference.ppl, rel=1e-4)
    assert own.kl == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        ids = windows.ids[CALIBRATION:]
        loss = whole(input_ids=ids, labels=ids).loss
    assert reference.ppl == pytest.approx(float(loss.exp()), rel=1e-3)


def test_what_is_measured_does_not_depend_on_the_size_of_a_piece(
    windows: Windows, built: LowBitBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = ReferenceEvaluator.of(windows, built.teacher, built.model)
    whole = evaluator.reference(), evaluator.measure(built.model, "quantized")
    monkeypatch.setattr("qlora_space.lowbit.gate._AT_ONCE", 7)
    pieces = evaluator.reference(), evaluator.measure(built.model, "quantized")
    for one, other in zip(whole, pieces, strict=True):
        assert (one.ppl, one.kl, one.top1) == pytest.approx((other.ppl, other.kl, other.top1))


def gate(ppl: float, top1: float, init: str = "eora") -> tuple[Gate, Quality]:
    points = (
        QualityPoint(name="16 bit", ppl=30.0, kl=0, top1=1),
        QualityPoint(name="start", ppl=ppl, kl=1, top1=top1),
    )
    quality = Quality(
        base_id="x", base_sha="y", bits=2, init=init, heal=False, group_size=64, r=8,
        bits_per_weight=2.28, text="your held-out rows", points=points,
    )  # fmt: skip
    return gate_of(quality), quality


def test_the_gate_is_red_for_a_broken_base_and_names_what_was_not_tried() -> None:
    fine, quality = gate(67.0, 0.5)
    assert not fine.is_broken
    refuse_broken(fine, quality)
    for ppl, top1 in ((301.0, 0.5), (60.0, 0.2), (1e12, 0.9)):
        found, quality = gate(ppl, top1)
        assert found.is_broken
        with pytest.raises(ModelError, match="At 2 bits this base is broken") as caught:
            refuse_broken(found, quality)
        assert "cheapest first: heal before training; use groups of 32" in caught.value.hint
    with pytest.raises(ModelError) as caught:
        refuse_broken(*gate(301.0, 0.5, "zero"))
    assert "cheapest first: start from the repair" in caught.value.hint
    found, quality = gate(301.0, 0.5)
    for bits, more in ((2, 3), (3, 4), (4, 8)):
        with pytest.raises(ModelError, match=f"; use {more} bits; "):
            refuse_broken(found, quality.model_copy(update={"bits": bits}))


def test_a_base_that_answers_nonsense_has_figures_that_json_can_hold(
    windows: Windows, built: LowBitBase
) -> None:
    base = replace(built, model=copy.deepcopy(built.model))
    evaluator = ReferenceEvaluator.of(windows, base.teacher, base.model)
    with torch.no_grad():
        base.model.model.norm.weight.fill_(float("nan"))
    point = evaluator.measure(base.model, "quantized")
    assert QualityPoint.model_validate_json(point.model_dump_json()) == point
    assert point.ppl == 1e12
