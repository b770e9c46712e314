# pyright: basic, reportMissingImports=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
"""A block's columns rounded one after the other in one pass: plain torch would launch ten kernels for each."""

import torch
import triton
import triton.language as tl

from qlora_space.lowbit.rounding import Levels

_ROWS = 16  # of a program


def round_block(
    targets: torch.Tensor,
    now: torch.Tensor | None,
    feedback: torch.Tensor,
    levels: Levels,
    start: int,
    codes: torch.Tensor,
    errors: torch.Tensor,
) -> None:
    """Columns from `start`, as many as `errors` (columns, m) has: fill it, and their codes. All are contiguous, and the
    feedback of a column to itself is 0. Targets are left as they were: nothing reads those of rounded columns."""
    columns, m = errors.shape
    _round[(triton.cdiv(m, _ROWS),)](
        targets, targets if now is None else now, feedback, levels.scale, levels.zero, levels.group, codes, errors,
        m, len(targets), start, columns, levels.top, HAS_NOW=now is not None,
        COLUMNS=triton.next_power_of_2(columns), ROWS=_ROWS,
    )  # fmt: skip


@triton.jit
def _round(  # noqa: PLR0913 - a kernel
    targets, now, feedback, scale, zero, group, codes, errors, m, n, start, columns, top,
    HAS_NOW: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS outputs of the weight, a block's columns of which stay in registers."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside, column = row < m, tl.arange(0, COLUMNS)
    at = (start + column).to(tl.int64)
    mask = (column < columns)[:, None] & inside[None, :]
    x = tl.load(targets + at[:, None] * m + row[None, :], mask=mask, other=0.0)
    for i in range(columns):
        this = (start + i).to(tl.int64)
        target = tl.sum(tl.where((column == i)[:, None], x, 0.0), 0)
        of = tl.load(group + this) * m + row
        s, z = (
            tl.load(scale + of, mask=inside, other=1.0),
            tl.load(zero + of, mask=inside, other=0.0),
        )
        code = tl.minimum(tl.maximum(tl.floor(target / s + z + 0.5), 0.0), top)
        before = tl.load(now + this * m + row, mask=inside, other=0.0) if HAS_NOW else target
        error = before - (code - z) * s
        tl.store(codes + this * m + row, code.to(tl.uint8), mask=inside)
        tl.store(errors + i * m + row, error, mask=inside)
        moves = tl.load(feedback + this * n + at, mask=column < columns, other=0.0)
        x -= moves[:, None] * error[None, :]
