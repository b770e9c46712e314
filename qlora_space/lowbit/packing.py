"""Small unsigned integers in bytes, without waste: 3 bits are a plane of 2 and a plane of 1."""

import torch

_PLANES = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}


def packed_width(columns: int, bits: int) -> int:
    """Bytes of a row of `columns` codes; every plane begins at a whole byte."""
    return sum(-(-columns * plane // 8) for plane in _PLANES[bits])


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(m, n) uint8 codes below 2**bits to (m, packed_width(n, bits)) bytes, low bits first."""
    planes, shift = [], 0
    for plane in _PLANES[bits]:
        per_byte = 8 // plane
        part = (codes >> shift) & (2**plane - 1)
        part = torch.nn.functional.pad(part, (0, -codes.shape[1] % per_byte))
        part = part.view(codes.shape[0], -1, per_byte) << _shifts(plane, codes.device)
        planes.append(part.sum(-1, dtype=torch.uint8))
        shift += plane
    return torch.cat(planes, 1)


def unpack(packed: torch.Tensor, columns: int, bits: int) -> torch.Tensor:
    """The inverse of pack: (m, bytes) to (m, columns) uint8."""
    codes, start, shift = None, 0, 0
    for plane in _PLANES[bits]:
        width = -(-columns * plane // 8)
        part = packed[:, start : start + width, None] >> _shifts(plane, packed.device)
        part = (part & (2**plane - 1)).reshape(packed.shape[0], -1)[:, :columns]
        codes = part if codes is None else codes | (part << shift)
        start, shift = start + width, shift + plane
    assert codes is not None
    return codes


def _shifts(plane: int, device: torch.device) -> torch.Tensor:
    return torch.arange(0, 8, plane, dtype=torch.uint8, device=device)
