"""Weights that a checkpoint stores packed, as the 16-bit weights that they stand for: FP8, compressed-tensors, AWQ.

A linear of n inputs and m outputs. FP8 and 8-bit integers: `weight` (m, n) and a scale for all, for each row, or each
square block (`weight_scale_inv`, DeepSeek's name, is a scale too). compressed-tensors' packed integers: `weight_packed`
(m, words), codes from the lowest bits up, `weight_scale` (m, groups). AWQ: `qweight` (n, m / 8), `qzeros`, `scales`.
"""

from collections.abc import Callable

import torch

from qlora_space.core.errors import ModelError

Has = Callable[[str], bool]
Read = Callable[[str], torch.Tensor]
_WORD_BITS, _AWQ_BITS = 32, 4
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where AWQ's eight columns of a word are in it
_SCALES = ("weight_scale_inv", "weight_scale")
_PACKED = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


def is_stored_packed(key: str, has: Has) -> bool:
    """Whether the weight `key` is there only in packed form."""
    stem = key.removesuffix("weight")
    return stem != key and (has(f"{stem}weight_packed") or has(f"{stem}qweight"))


def unpacked(key: str, has: Has, read: Read) -> torch.Tensor:
    """The weight (m, n) `key` in fp32, which `is_stored_packed`. Raises ModelError."""
    stem = key.removesuffix("weight")
    if has(f"{stem}weight_packed"):
        return _compressed(stem, has, read)
    return _awq(stem, read)


def scaled(value: torch.Tensor, key: str, has: Has, read: Read, block: int) -> torch.Tensor:
    """The tensor `key` as it was read, in fp32 with its scale where it has one; `block`: edge of blocks, where these
    have one each. Raises ModelError."""
    if value.dtype not in _PACKED:
        return value
    stem = key.removesuffix("weight")
    name = next((stem + scale for scale in _SCALES if stem != key and has(stem + scale)), None)
    if name is None:
        raise ModelError(f"{key} has no scale.", "Choose the original 16-bit model.")
    return value.float() * _spread(read(name).float(), value.shape, block)


def _spread(scale: torch.Tensor, shape: torch.Size, block: int) -> torch.Tensor:
    """A scale for all, for each row (m) or (m, 1), or for each block, over a weight of that shape."""
    if scale.numel() == 1:
        return scale.reshape(1, 1)
    if scale.dim() == 1:
        return scale[:, None]
    for axis, size in enumerate(shape):
        if scale.shape[axis] not in (1, size):
            scale = scale.repeat_interleave(block, axis).narrow(axis, 0, size)
    return scale


def _compressed(stem: str, has: Has, read: Read) -> torch.Tensor:
    packed, scale = read(f"{stem}weight_packed"), read(f"{stem}weight_scale").float()
    m, n = (int(size) for size in read(f"{stem}weight_shape").tolist())
    bits = _WORD_BITS * packed.shape[1] // n
    if has(f"{stem}weight_g_idx") and (read(f"{stem}weight_g_idx") >= 0).all():
        raise ModelError(
            f"{stem}weight has its columns in another order.", "Choose the original 16-bit model."
        )
    codes = _codes(packed, bits)[:, :n]
    zeros: torch.Tensor | float = float(1 << (bits - 1))
    if has(f"{stem}weight_zero_point"):
        stored = read(f"{stem}weight_zero_point")
        zeros = _codes(stored.T.contiguous(), bits).T[:m].repeat_interleave(n // scale.shape[1], 1)
    return (codes - zeros) * scale.repeat_interleave(n // scale.shape[1], 1)


def _codes(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(m, words) int32 to (m, codes) fp32."""
    shifts = torch.arange(0, _WORD_BITS, bits, device=words.device, dtype=torch.int32)
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).flatten(1).float()


def _awq(stem: str, read: Read) -> torch.Tensor:
    order = torch.tensor(_AWQ_ORDER)
    codes, zeros = (_ordered(read(f"{stem}{part}"), order) for part in ("qweight", "qzeros"))
    scales = read(f"{stem}scales").float()
    group = codes.shape[0] // scales.shape[0]
    wide = (codes - zeros.repeat_interleave(group, 0)) * scales.repeat_interleave(group, 0)
    return wide.T.contiguous()


def _ordered(words: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """AWQ's words (rows, m / 8) to codes (rows, m)."""
    codes = _codes(words, _AWQ_BITS)
    return codes.view(len(words), -1, len(order))[:, :, order.to(words.device)].flatten(1)
