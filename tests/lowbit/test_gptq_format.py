"""GPTQ's format: checkpoints of others have the weights that its formula gives, and ours have those of the base."""

import copy
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.errors import ModelError, RequestError
from qlora_space.core.request import TrainingRequest
from qlora_space.hub import model_facts
from qlora_space.lowbit import LowBitBase, Recipe, Windows, add_repair, quantize_base
from qlora_space.lowbit.gptq_format import (
    gptq_linear,
    load_gptq,
    pack_words,
    save_gptq,
    stored_tensors,
    unpack_words,
)
from qlora_space.lowbit.grid import quantize, whole_grid
from qlora_space.lowbit.linear import LowBitLinear
from qlora_space.plan.low_bit import as_packed

M, N, GROUP = 64, 128, 32


def packed_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(m, k) numbers to (m, k * bits / 32) int32, bit by bit: the format's own definition."""
    stream = ((codes[..., None].long() >> torch.arange(bits)) & 1).view(len(codes), -1, 32)
    words = (stream << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def stored(bits: int, *, is_v2: bool, act: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors of a linear, and its weight (M, N) by GPTQ's formula: scale * (code - zero) of each input's group."""
    g = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (M, N), generator=g)
    zeros = torch.randint(1, 2**bits, (M, N // GROUP), generator=g)
    scales = torch.rand(M, N // GROUP, generator=g).half()
    groups = torch.arange(N) // GROUP
    if act:
        groups = groups[torch.randperm(N, generator=g)]
    weight = scales.float()[:, groups] * (codes - zeros[:, groups])
    parts = {
        "qweight": packed_words(codes, bits).T.contiguous(),
        "qzeros": packed_words((zeros - (0 if is_v2 else 1)).T.contiguous(), bits),
        "scales": scales.T.contiguous(),
        "g_idx": groups.to(torch.int32),
    }
    return parts, weight


@pytest.mark.parametrize("act", [False, True])
@pytest.mark.parametrize("is_v2", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_linear_has_the_weights_that_the_format_states(bits: int, is_v2: bool, act: bool) -> None:
    parts, weight = stored(bits, is_v2=is_v2, act=act)
    layer = gptq_linear(parts, bits, is_v2, torch.float32)
    torch.testing.assert_close(layer.dequantized(), weight, atol=0, rtol=0)
    assert (layer.order is not None) == act
    x = torch.randn(3, N)
    torch.testing.assert_close(layer(x), x @ weight.T, atol=1e-3, rtol=1e-4)


def test_three_bits_across_words_are_read_as_one_number() -> None:
    codes = torch.arange(32)[None] % 8
    assert torch.equal(unpack_words(packed_words(codes, 3), 3).long(), codes)


def checkpoint(folder: Path, bits: int = 4, *, is_v2: bool = False) -> torch.Tensor:
    """The demo base with one linear in GPTQ's format; returns that linear's weight."""
    folder.mkdir()
    for file in BASE_FOLDER.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(next(BASE_FOLDER.glob("*.safetensors")))
    name = "model.layers.1.mlp.down_proj"
    m, n = weights.pop(f"{name}.weight").shape
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, (m, n), generator=g)
    zeros = torch.full((m, n // GROUP), 2 ** (bits - 1))
    weights |= {
        f"{name}.qweight": packed_words(codes, bits).T.contiguous(),
        f"{name}.qzeros": packed_words(zeros.T.contiguous() - (0 if is_v2 else 1), bits),
        f"{name}.scales": torch.full((n // GROUP, m), 0.01).half(),
        f"{name}.g_idx": (torch.arange(n) // GROUP).to(torch.int32),
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": bits, "group_size": GROUP}
    (folder / "config.json").write_text(json.dumps(config))
    return torch.tensor(0.01).half().float() * (codes - 2 ** (bits - 1)).float()


def test_a_checkpoint_is_loaded_and_what_is_not_packed_in_it_stays(tmp_path: Path) -> None:
    weight = checkpoint(tmp_path / "ready")
    model = load_gptq(tmp_path / "ready", "cpu", torch.float32)
    packed = {n: m for n, m in model.named_modules() if isinstance(m, LowBitLinear)}
    assert list(packed) == ["model.layers.1.mlp.down_proj"]
    torch.testing.assert_close(packed["model.layers.1.mlp.down_proj"].dequantized(), weight)
    assert torch.isfinite(model(input_ids=torch.arange(20)[None]).logits).all()


def of_auto_round(folder: Path, bits: int, packing: str, **more: object) -> torch.Tensor:
    """As auto-round 0.16.1 writes its own format (seen in its files): version 2 without g_idx, or version 1."""
    weight = checkpoint(folder, bits, is_v2=packing == "auto_round")
    weights = load_file(folder / "model.safetensors")
    if packing == "auto_round":
        weights = {k: v for k, v in weights.items() if not k.endswith(".g_idx")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "autoround_version": "0.16.1", "bits": bits, "block_name_to_quantize": "model.layers", "data_type": "int",
        "group_size": GROUP, "iters": 2, "packing_format": packing, "quant_method": "auto-round", "sym": False,
    } | more  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return weight


@pytest.mark.parametrize(
    ("bits", "packing"),
    [(2, "auto_round"), (4, "auto_round"), (4, "auto_round:auto_gptq"), (3, "auto_round")],
)
def test_auto_rounds_own_format_has_the_same_weights(
    tmp_path: Path, bits: int, packing: str
) -> None:
    weight = of_auto_round(tmp_path / "ready", bits, packing)
    facts = model_facts(str(tmp_path / "ready"), None, None)
    assert (facts.quantization, facts.quantized_bits) == ("gptq", bits)
    model = load_gptq(tmp_path / "ready", "cpu", torch.float32)
    layer = model.get_submodule("model.layers.1.mlp.down_proj")
    assert isinstance(layer, LowBitLinear)
    torch.testing.assert_close(layer.dequantized(), weight)


@pytest.mark.parametrize(
    "more", [{"extra_config": {"lm_head": {"bits": 8}}}, {"act_bits": 8}, {"data_type": "mx_fp"}]
)
def test_of_auto_rounds_formats_only_integers_of_one_width_are_read(
    tmp_path: Path, more: dict[str, object]
) -> None:
    of_auto_round(tmp_path / "ready", 4, "auto_round", **more)
    with pytest.raises(ModelError, match="quantized already"):
        model_facts(str(tmp_path / "ready"), None, None)


def test_its_facts_count_the_weights_inside_the_words(tmp_path: Path) -> None:
    checkpoint(tmp_path / "ready")
    whole, ready = model_facts("demo", None, None), model_facts(str(tmp_path / "ready"), None, None)
    assert (ready.quantization, ready.quantized_bits) == ("gptq", 4)
    assert ready.linear_parameters == whole.linear_parameters
    assert ready.parameters == whole.parameters
    plain = as_packed(TrainingRequest(bits=2), ready)
    assert (plain.bits, plain.init) == (4, "zero")
    with pytest.raises(RequestError, match="16-bit weights, which a repair needs"):
        as_packed(TrainingRequest(init="eora"), ready)


@pytest.mark.parametrize(
    ("method", "hint"),
    [
        ("torchao", "quantized here to 8, 4, 3 or 2"),
        ("auto-round", "everywhere, or the original"),
        ("vptq", "GPTQ"),
    ],
)
def test_other_formats_are_refused_with_what_to_use_instead(
    tmp_path: Path, method: str, hint: str
) -> None:
    checkpoint(tmp_path / "ready")
    file = tmp_path / "ready" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["quant_method"] = method
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"quantized already .{method}") as caught:
        model_facts(str(tmp_path / "ready"), None, None)
    assert hint in caught.value.hint


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_words_are_packed_as_the_format_defines(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 64), dtype=torch.uint8)
    assert torch.equal(pack_words(codes, bits), packed_words(codes, bits))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_whole_zeros_lie_between_the_codes_even_where_all_weights_have_one_sign(bits: int) -> None:
    """Version 1 has no word for a zero of 0, and readers that add one in the packed word overflow at 2**bits."""
    weight = torch.rand(32, 64) + 0.5
    weight[:8], weight[8:16] = -weight[:8], torch.randn(8, 64)
    grid = whole_grid(bits, 32)
    found = quantize(weight, grid)
    zeros = grid.zero_start + grid.zero_step * found.zeros.float()
    assert zeros.min() >= 1
    assert zeros.max() <= 2**bits - 1
    layer = LowBitLinear.from_quantized(found, None, torch.float32)
    stored_zeros = unpack_words(stored_tensors(layer)["qzeros"], bits)
    assert stored_zeros.max() < 2**bits - 1


@pytest.fixture(scope="module", params=[2, 3, 4])
def whole(request: pytest.FixtureRequest, windows: Windows) -> LowBitBase:
    recipe = Recipe(request.param, GROUP, r=8, whole_zeros=True)
    return quantize_base(BASE_FOLDER, recipe, windows, device="cpu", dtype=torch.float32)


def test_a_written_base_is_read_with_the_same_logits(whole: LowBitBase, tmp_path: Path) -> None:
    save_gptq(whole.model, tmp_path)
    facts = model_facts(str(tmp_path), None, None)
    assert facts.quantization == "gptq"
    again = load_gptq(tmp_path, "cpu", torch.float32)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        ours, theirs = whole.model(input_ids=ids).logits, again(input_ids=ids).logits
    torch.testing.assert_close(theirs, ours)


def test_a_base_in_another_grid_or_not_wholly_packed_is_not_written(
    built: LowBitBase, whole: LowBitBase, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="not in GPTQ's grid"):
        save_gptq(built.model, tmp_path / "half")
    model = copy.deepcopy(whole.model)
    model.set_submodule("model.layers.0.mlp.up_proj", torch.nn.Linear(256, 512, bias=False))
    with pytest.raises(ModelError, match="up_proj is not packed"):
        save_gptq(model, tmp_path / "part")
    model = copy.deepcopy(whole.model)
    odd = quantize(torch.randn(40, 256), model.model.layers[0].mlp.up_proj.grid)
    layer = LowBitLinear.from_quantized(odd, None, torch.float32)
    model.set_submodule("model.layers.0.mlp.up_proj", layer)
    with pytest.raises(ModelError, match="40 x 256, which 32 does not divide"):
        save_gptq(model, tmp_path / "odd")
    assert not list(tmp_path.iterdir())


_BY_OTHERS = """
import sys, torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, device_map={"": "cpu"}).eval()
assert not any(name.startswith("qlora_space") for name in sys.modules)
ids = torch.arange(5, 45)[None]
with torch.no_grad():
    base = model(input_ids=ids).logits
    repaired = PeftModel.from_pretrained(model, sys.argv[1] + "/repair")(input_ids=ids).logits
save_file({"base": base.float(), "repaired": repaired.float()}, sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.skipif("GPTQMODEL_PYTHON" not in os.environ, reason="no Python with gptqmodel")
def test_transformers_and_peft_alone_load_it_with_its_repair(
    whole: LowBitBase, tmp_path: Path
) -> None:
    """GPTQMODEL_PYTHON names an interpreter with transformers, peft, gptqmodel and optimum. gptqmodel's product at 4
    bits rounds to bf16, the others are fp32."""
    base = copy.deepcopy(whole)
    save_gptq(base.model, tmp_path)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        plain = base.model(input_ids=ids).logits
        model = add_repair(base)
        repaired = model(input_ids=ids).logits
    model.save_pretrained(str(tmp_path / "repair"))
    python, out = os.environ["GPTQMODEL_PYTHON"], tmp_path / "logits.safetensors"
    environment = {
        "PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "HF_HUB_OFFLINE": "1", "GPTQMODEL_CPU_WORKERS": "2",
    }  # fmt: skip
    command = [python, "-c", _BY_OTHERS, str(tmp_path), str(out)]
    subprocess.run(command, check=True, timeout=300, env=environment, cwd=tmp_path)
    found = load_file(out)
    bits = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.grid.bits
    for ours, theirs in ((plain, found["base"]), (repaired, found["repaired"])):
        difference = (ours - theirs).abs().max() / ours.std()
        assert difference < (0.05 if bits == 4 else 0.002)
