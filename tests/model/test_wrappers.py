"""The text model inside of one that also sees: what is loaded, and that others load its adapter onto the whole."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from qlora_space.core.facts import Hardware
from qlora_space.core.request import TrainingRequest
from qlora_space.fast.model import build_checked
from qlora_space.fast.policies import ActivationPolicy
from qlora_space.lowbit.build import pack_base
from qlora_space.lowbit.checkpoint import load_lowbit, save_lowbit
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.lowbit.text_model import left_out
from qlora_space.model import WEIGHTS_FILE, load_base, save_adapter
from qlora_space.plan.step_kind import why_plain
from tests.base_trial import logits_of, plan_of
from tests.model.test_families import LARGEST_DIFFERENCE, checkpoint, facts_of, wide
from tests.tiny_families import WRAPPERS

each_wrapper = pytest.mark.parametrize("name", WRAPPERS)
SOUND_AND_SIGHT = ("visual", "vision", "audio", "multi_modal")


def whole_class(name: str, kind: str) -> Any:
    folder = checkpoint(name)
    if kind == "auto":
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    config: Any = AutoConfig.from_pretrained(folder)
    declared = config.architectures[0]
    return getattr(transformers, declared).from_pretrained(folder, dtype=torch.float32)


@each_wrapper
def test_towers_are_neither_loaded_nor_adapted_nor_counted(name: str) -> None:
    model, facts = wide(name), facts_of(name)
    assert left_out(model.get_base_model())
    names = [n for n, _ in model.named_parameters()]
    assert not [n for n in names if any(part in n for part in SOUND_AND_SIGHT)]
    whole = sum(p.numel() for p in whole_class(name, "auto").parameters())
    assert facts.parameters + facts.left_out_parameters == pytest.approx(whole, abs=8)  # buffers


@each_wrapper
def test_the_plan_says_what_is_left_out(name: str) -> None:
    choice = next(c for c in plan_of(checkpoint(name)).choices if c.name == "trained_part")
    assert choice.value == "text"
    assert "towers for images and sound" in choice.why
    assert "are not loaded" in choice.why


@each_wrapper
@pytest.mark.parametrize("kind", ["auto", "declared"])
def test_others_load_the_adapter_onto_the_whole_class(name: str, kind: str, tmp_path: Path) -> None:
    """No key is left over on either side, and the logits are the same."""
    ours: Any = wide(name)
    save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(whole_class(name, kind), tmp_path)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    assert get_peft_model_state_dict(theirs).keys() == stored.keys()
    wanted, got = logits_of(ours), logits_of(theirs)
    assert (got - wanted).abs().max() < LARGEST_DIFFERENCE * wanted.abs().max()
    with theirs.disable_adapter():
        assert (logits_of(theirs) - wanted).abs().max() > 0.01 * wanted.abs().max()


def test_nobody_complains_of_weights_that_stay_out(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        load_base(checkpoint("gemma3"), 4, "cpu")
    finally:
        logger.removeHandler(caplog.handler)
    assert "UNEXPECTED" not in caplog.text


def test_a_config_that_leaves_out_what_is_usual_has_its_sizes() -> None:
    """As google/gemma-3-4b-it states them."""
    from qlora_space.hub.model_config import shape_of

    text: dict[str, Any] = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
    }
    shape = shape_of("it", {"model_type": "gemma3", "text_config": text})
    config = transformers.Gemma3TextConfig(**text)  # type: ignore[arg-type]
    for field in ("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"):
        assert shape[field] == getattr(config, field)
    assert shape["max_position_embeddings"] == config.max_position_embeddings


@pytest.mark.parametrize(("name", "inner"), [("gemma3", "gemma3_text"), ("mistral3", "mistral")])
def test_the_fast_step_takes_the_text_model_inside(name: str, inner: str) -> None:
    """With its own gradients, and in the plan."""
    here = Hardware(
        name="GPU", device="cuda", memory_gib=80, free_gib=80, cpu_cores=8, disk_free_gib=99
    )
    facts = facts_of(name)
    assert facts.model_type == inner
    assert not why_plain(TrainingRequest(), facts, here, 16)
    _, gradient = build_checked(wide(name), ActivationPolicy.LAYER, on_cpu=True)
    assert gradient < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma3", "qwen3.5", "qwen2.5-vl", "mistral3"])
def test_few_bits_are_packed_from_the_names_that_a_checkpoint_has(
    name: str, tmp_path: Path
) -> None:
    """And a packed base is stored and read under the names of the class."""
    model = pack_base(checkpoint(name), 3, 32, "cpu", torch.float32)
    assert any(isinstance(module, LowBitLinear) for module in model.modules())
    save_lowbit(model, tmp_path)
    assert torch.equal(logits_of(load_lowbit(tmp_path, "cpu", torch.float32)), logits_of(model))
