"""A merged model answers as the adapter on its base does, under the names of the base's own files, for every family."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from qlora_space.core.errors import ModelError
from qlora_space.experts import expert_targets, linear_targets
from qlora_space.hub import model_facts
from qlora_space.lowbit import add_lora
from qlora_space.lowbit.build import pack_base
from qlora_space.model import WEIGHTS_FILE, load_base, save_adapter
from qlora_space.model.by_blocks import load_by_blocks
from qlora_space.model.merge import frozen_weights, merge, original_weights
from tests.tiny_families import DENSE, HYBRIDS, MIXTURES, WRAPPERS, build
from tests.train.small import tiny_base

IDS = torch.arange(300, 340)[None]
FAMILIES = (*DENSE, *HYBRIDS, *WRAPPERS, *MIXTURES)


def adapter_on(base: Any, folder: Path, **more: Any) -> Path:
    """A saved adapter that changes something; returns its folder."""
    model = add_lora(base, r=4, lora_alpha=8, **more)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    save_adapter(model, folder)
    return folder


def merged(weights: Any, adapter: Path, base: Path, folder: Path, dtype: torch.dtype) -> Path:
    folder.mkdir()
    counts = list(merge(weights, adapter, base, folder, dtype))
    assert counts[-1][0] == counts[-1][1]
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_alone_loads_what_the_adapter_answers(name: str, tmp_path: Path) -> None:
    base_folder = build(name, tmp_path / "base")
    is_wrapper = model_facts(str(base_folder), None, None).is_wrapper
    auto: Any = AutoModelForImageTextToText if is_wrapper else AutoModelForCausalLM
    wide = auto.from_pretrained(base_folder, dtype=torch.float32)
    more = {}
    if name in MIXTURES:
        more = {"expert_targets": expert_targets(wide), "expert_r": 4}
        more["target_modules"] = linear_targets(wide)
    narrow = load_base(base_folder, 16, "cpu") if name not in MIXTURES else wide
    adapter = adapter_on(narrow, tmp_path / "adapter", **more)
    folder = merged(
        original_weights(base_folder), adapter, base_folder, tmp_path / "merged", torch.float32
    )
    fresh = auto.from_pretrained(base_folder, dtype=torch.float32)
    wanted = logits(PeftModel.from_pretrained(fresh, adapter))
    model, info = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert float((logits(model) - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())
    assert not any(info.values()), info
    assert names_in(folder) == names_in(base_folder), "the files name everything as before"


@pytest.fixture(scope="module")
def adapter() -> Path:
    base = AutoModelForCausalLM.from_pretrained(tiny_base())
    return adapter_on(base, Path(tempfile.mkdtemp(prefix="adapter-")))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_it_is_merged_into_the_base_that_it_was_trained_on(
    bits: int, adapter: Path, tmp_path: Path
) -> None:
    """The largest difference left is that of 16-bit sums, and far below that to the original base."""
    if bits == 2:
        base: Any = pack_base(tiny_base(), 2, 64, "cpu", torch.bfloat16)
    else:
        base = load_base(tiny_base(), bits, "cpu")
    folder = merged(frozen_weights(base), adapter, tiny_base(), tmp_path / "m", torch.bfloat16)
    wanted = logits(PeftModel.from_pretrained(base, adapter))
    found = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16))
    original = logits(PeftModel.from_pretrained(load_base(tiny_base(), 16, "cpu"), adapter))
    near, far = ((each - wanted).abs().max() / wanted.abs().max() for each in (found, original))
    assert near < 0.05
    assert near < far / (1.5 if bits == 8 else 4)


def test_packed_experts_are_dequantized_as_they_multiply(tmp_path: Path) -> None:
    """Weights of this family are values of NF4, so that packing loses nothing."""
    base_folder = build("mixtral", tmp_path / "base")
    packed = {
        n: w
        for part in frozen_weights(load_by_blocks(base_folder, 4, "cpu"))
        for n, w in part.items()
    }
    wide = {n: w for part in original_weights(base_folder) for n, w in part.items()}
    assert packed.keys() == wide.keys()
    for name, weight in wide.items():
        torch.testing.assert_close(packed[name].float(), weight.float(), atol=1e-3, rtol=0)


def test_dora_is_merged_as_peft_merges_it(tmp_path: Path) -> None:
    wide = AutoModelForCausalLM.from_pretrained(tiny_base(), dtype=torch.float32)
    config = LoraConfig(
        r=4, init_lora_weights=False, task_type="CAUSAL_LM", target_modules="all-linear", use_dora=True
    )  # fmt: skip
    model = get_peft_model(wide, config)
    model.save_pretrained(tmp_path / "adapter")
    folder = merged(
        original_weights(tiny_base()),
        tmp_path / "adapter",
        tiny_base(),
        tmp_path / "m",
        torch.float32,
    )
    wanted: Any = model.merge_and_unload()
    found = load_file(folder / "model.safetensors")
    for name, weight in found.items():
        torch.testing.assert_close(weight, wanted.state_dict()[name], atol=1e-6, rtol=0)


def test_shards_are_named_and_indexed_as_transformers_looks_for_them(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qlora_space.model import shard_writer

    monkeypatch.setattr(shard_writer.ShardWriter.__init__, "__defaults__", (60_000,))
    folder = merged(
        original_weights(tiny_base()), adapter, tiny_base(), tmp_path / "m", torch.bfloat16
    )
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert not list(folder.glob("part-*"))
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())


def test_an_adapter_of_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = build("qwen3", tmp_path / "other")
    with pytest.raises((ModelError, RuntimeError)):
        merged(original_weights(other), adapter, other, tmp_path / "m", torch.bfloat16)


def test_a_layer_whose_weights_are_not_in_the_file_is_refused(
    adapter: Path, tmp_path: Path
) -> None:
    """peft leaves it as it was initialized and says nothing."""
    broken = tmp_path / "adapter"
    broken.mkdir()
    weights = load_file(adapter / WEIGHTS_FILE)
    save_file(dict(list(weights.items())[2:]), broken / WEIGHTS_FILE)
    (broken / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    with pytest.raises(ModelError, match="no weights for"):
        merged(original_weights(tiny_base()), broken, tiny_base(), tmp_path / "m", torch.bfloat16)


def test_a_weight_that_is_no_number_is_refused(adapter: Path, tmp_path: Path) -> None:
    broken = tmp_path / "adapter"
    broken.mkdir()
    weights = load_file(adapter / WEIGHTS_FILE)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, broken / WEIGHTS_FILE)
    (broken / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    with pytest.raises(ModelError, match="no finite numbers"):
        merged(original_weights(tiny_base()), broken, tiny_base(), tmp_path / "m", torch.bfloat16)
