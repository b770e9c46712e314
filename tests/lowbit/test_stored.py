"""Packed weights of other formats, written here by their definitions, are the numbers that they stand for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qlora_space.core.errors import ModelError
from qlora_space.lowbit.shards import Shards

M, N = 48, 320
GENERATOR = torch.Generator().manual_seed(0)


def read(folder: Path, tensors: dict[str, torch.Tensor], block: int = 0) -> torch.Tensor:
    save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "model.safetensors")
    stated = {"quantization_config": {"weight_block_size": [block, block]}} if block else {}
    (folder / "config.json").write_text(json.dumps(stated))
    shards = Shards(folder)
    assert shards.has("a.weight")
    return shards.read("a.weight", "cpu")


def random_fp8() -> torch.Tensor:
    return torch.randn(M, N, generator=GENERATOR).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("block", [32, 64])
def test_fp8_with_a_scale_for_each_block_whose_last_one_is_cut(block: int, tmp_path: Path) -> None:
    """48 x 320 in blocks of 32 and 64: neither size is always a multiple."""
    codes = random_fp8()
    scale = torch.rand(-(-M // block), -(-N // block), generator=GENERATOR)
    got = read(tmp_path, {"a.weight": codes, "a.weight_scale_inv": scale}, block)
    rows, columns = torch.arange(M) // block, torch.arange(N) // block
    assert torch.equal(got, codes.float() * scale[rows][:, columns])


@pytest.mark.parametrize("shape", [(), (1,), (M,), (M, 1)])
def test_fp8_with_one_scale_or_one_for_each_row(shape: tuple[int, ...], tmp_path: Path) -> None:
    codes, scale = random_fp8(), torch.rand(shape, generator=GENERATOR)
    got = read(tmp_path, {"a.weight": codes, "a.weight_scale": scale})
    assert torch.equal(got, codes.float() * (scale.reshape(-1, 1) if scale.numel() > 1 else scale))


def test_fp8_without_a_scale_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no scale"):
        read(tmp_path, {"a.weight": random_fp8()})


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Along the last axis, from the lowest bits up."""
    per_word = 32 // bits
    shifts = torch.arange(0, 32, bits)
    split = codes.long().view(*codes.shape[:-1], -1, per_word) << shifts
    total = split.sum(-1)
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [64, N])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_packed_integers_of_compressed_tensors(
    bits: int, group: int, is_symmetric: bool, tmp_path: Path
) -> None:
    codes = torch.randint(2**bits, (M, N), generator=GENERATOR)
    scale = torch.rand(M, N // group, generator=GENERATOR).bfloat16()
    zeros = torch.full((M, N // group), 2 ** (bits - 1))
    tensors = {
        "a.weight_packed": words(codes, bits),
        "a.weight_scale": scale,
        "a.weight_shape": torch.tensor([M, N]),
    }
    if not is_symmetric:
        zeros = torch.randint(2**bits, (M, N // group), generator=GENERATOR)
        tensors["a.weight_zero_point"] = words(zeros.T, bits).T
    spread = torch.arange(N) // group
    wanted = (codes - zeros[:, spread]).float() * scale.float()[:, spread]
    assert torch.equal(read(tmp_path, tensors), wanted)


def test_awq(tmp_path: Path) -> None:
    """Words hold eight outputs of one input, in AWQ's order 0 2 4 6 1 3 5 7."""
    group, order = 64, [0, 2, 4, 6, 1, 3, 5, 7]
    codes = torch.randint(16, (N, M), generator=GENERATOR)
    zeros = torch.randint(16, (N // group, M), generator=GENERATOR)
    scales = torch.rand(N // group, M, generator=GENERATOR).half()
    tensors = {
        name: words(values.view(len(values), -1, 8)[:, :, order].flatten(1), 4)
        for name, values in (("a.qweight", codes), ("a.qzeros", zeros))
    }
    spread = torch.arange(N) // group
    wanted = (codes - zeros[spread]).float() * scales.float()[spread]
    assert torch.equal(read(tmp_path, {**tensors, "a.scales": scales}), wanted.T)
