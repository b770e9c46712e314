"""Checkpoints of others: the same weights as their own formula gives, in both versions and any order of columns."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.errors import ModelError, RequestError
from qlora_space.core.request import TrainingRequest
from qlora_space.hub import model_facts
from qlora_space.lowbit.gptq_format import gptq_linear, load_gptq, unpack_words
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


def checkpoint(folder: Path, bits: int = 4) -> torch.Tensor:
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
        f"{name}.qzeros": packed_words(zeros.T.contiguous() - 1, bits),
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
    [("torchao", "quantized here to 8, 4, 3 or 2"), ("auto-round", "auto_gptq"), ("vptq", "GPTQ")],
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
