"""Checkpoints as they come: each is the model that its 16-bit original is, and trains."""

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from qlora_space.core.errors import ModelError
from qlora_space.data import load_tokenizer
from qlora_space.data.inspection.inspect_dataset import inspect_dataset
from qlora_space.hub import model_facts
from qlora_space.lowbit import add_lora
from qlora_space.model.load import load_frozen_base
from qlora_space.model.loaded import loaded_base, require_as_planned
from tests.base_trial import logits_of, plan_of, try_base
from tests.tiny_families import VOCABULARY, build, change_config, copy_tokenizer

FP8_BLOCK = 128


@functools.cache
def original(family: str = "qwen3") -> Path:
    return build(family, Path(tempfile.mkdtemp(prefix="original-")) / family)


def in_nf4(folder: Path) -> dict[str, Any]:
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(original(), quantization_config=quantization)
    model.save_pretrained(folder)
    return {}


def in_fp8(folder: Path) -> dict[str, Any]:
    """Blocks with a scale, as DeepSeek stores them."""
    stored = {}
    for name, weight in load_file(original() / "model.safetensors").items():
        stored[name] = weight
        if name.endswith("proj.weight"):
            scale = torch.full(
                (-(-len(weight) // FP8_BLOCK), -(-weight.shape[1] // FP8_BLOCK)), 2**-8
            )
            stored[name] = (weight.float() / 2**-8).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return {"quant_method": "fp8", "weight_block_size": [FP8_BLOCK, FP8_BLOCK]}


def in_words(folder: Path) -> dict[str, Any]:
    """Eight bits, as compressed-tensors packs them."""
    from tests.lowbit.test_stored import words

    stored = {}
    for name, weight in load_file(original() / "model.safetensors").items():
        if not name.endswith("proj.weight"):
            stored[name] = weight
            continue
        scale = weight.float().abs().amax(1, keepdim=True) / 127
        codes = (weight.float() / scale).round() + 128
        stored[f"{name}_packed"] = words(codes, 8)
        stored[f"{name}_scale"], stored[f"{name}_shape"] = scale, torch.tensor(weight.shape)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    weights = {"type": "int", "num_bits": 8, "strategy": "channel", "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": groups,
    }


FORMATS = {"NF4": in_nf4, "FP8": in_fp8, "compressed-tensors": in_words}


@functools.cache
def stored(format: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="stored-"))
    shutil.copy(original() / "config.json", folder)
    if stated := FORMATS[format](folder):
        change_config(folder, quantization_config=stated)
    copy_tokenizer(folder)
    return folder


each_format = pytest.mark.parametrize("format", FORMATS)


@each_format
def test_it_is_counted_and_loaded_as_its_original(format: str) -> None:
    facts, wanted = (model_facts(str(f), None, None) for f in (stored(format), original()))
    assert facts.parameters == wanted.parameters
    assert facts.linear_parameters == wanted.linear_parameters
    base = load_frozen_base(facts, stored(format), 4, "cpu")
    got, plain = logits_of(base), logits_of(load_frozen_base(wanted, original(), 4, "cpu"))
    assert (got - plain).norm() < 0.2 * plain.norm()  # FP8 has three bits behind the point
    loaded = loaded_base(add_lora(base, r=4, lora_alpha=4))
    require_as_planned(loaded, facts, 4)
    assert loaded.quantized == wanted.linear_parameters


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("format", ["FP8", "compressed-tensors"])
def test_it_may_have_more_bits(format: str, bits: int) -> None:
    facts = model_facts(str(stored(format)), None, None)
    base = load_frozen_base(facts, stored(format), bits, "cpu")
    require_as_planned(loaded_base(add_lora(base, r=4, lora_alpha=4)), facts, bits)
    plain = load_frozen_base(model_facts(str(original()), None, None), original(), 16, "cpu")
    assert (logits_of(base) - logits_of(plain)).norm() < 0.1 * logits_of(plain).norm()


@each_format
def test_the_plan_and_the_card_say_how_it_is_stored(format: str, tmp_path: Path) -> None:
    trial = try_base(stored(format), tmp_path)
    assert trial.done[:3] == ["plan", "train", "compare"], (trial.refused, trial.crashed)
    assert trial.plan is not None
    told = [c for c in trial.plan.choices if c.name == "stored_weights"]
    assert bool(told) == (format != "NF4")


def test_code_that_transformers_has_is_neither_run_nor_asked_for(tmp_path: Path) -> None:
    folder = build("phi3", tmp_path / "phi3")
    for name in ("configuration_phi3", "modeling_phi3"):
        (folder / f"{name}.py").write_text('raise SystemExit("a stranger\'s code runs")\n')
    named = {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3",
    }
    change_config(folder, auto_map=named)
    change_config(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    trial = try_base(folder, tmp_path / "home")
    assert trial.is_whole, (trial.refused, trial.crashed)


@pytest.mark.parametrize(
    "where",
    [("quantization_config",), ("compression_config",), ("text_config", "quantization_config")],
)
def test_a_format_that_is_not_read_is_a_sentence_wherever_it_stands(
    where: tuple[str, ...], tmp_path: Path
) -> None:
    folder = shutil.copytree(original(), tmp_path / "odd")
    stated: Any = {"quant_method": "evil4"}
    for key in reversed(where):
        stated = {key: stated}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **stated}))
    with pytest.raises(ModelError, match="quantized already \\(evil4\\)"):
        model_facts(str(folder), None, None)


def test_a_pad_token_beyond_the_embedding_is_replaced(tmp_path: Path) -> None:
    folder = with_token(tmp_path / "pad", "[PAD]")
    change_config(folder, "tokenizer_config.json", pad_token="[PAD]")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_tokens_to_ids("[PAD]") == VOCABULARY
    assert tokenizer.pad_token_id < VOCABULARY
    assert try_base(folder, tmp_path / "home").is_whole


def test_a_row_with_a_token_beyond_the_embedding_is_found_before_training(tmp_path: Path) -> None:
    folder = with_token(tmp_path / "odd", "<new>")
    rows = [{"text": "all is well here"}] * 3 + [{"text": "here is a <new> word"}]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    from qlora_space.core.request import TrainingRequest

    request = TrainingRequest(dataset=str(data), base=str(folder))
    found = inspect_dataset(request, plan_of(folder).base, folder, None, allow_local=True)
    problem = next(p for p in found.problems if p.code == "token_beyond")
    assert problem.rows == 1
    assert "'<new>' has the id 2,048, and the base has 2,048 embeddings" in problem.message


def with_token(folder: Path, text: str) -> Path:
    """A base whose tokenizer has one token more than it has embeddings."""
    shutil.copytree(original(), folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    used = max([*content["model"]["vocab"].values(), *(t["id"] for t in content["added_tokens"])])
    assert used == VOCABULARY - 1
    new = {**content["added_tokens"][-1], "id": VOCABULARY, "content": text, "special": False}
    content["added_tokens"].append(new)
    file.write_text(json.dumps(content))
    return folder
