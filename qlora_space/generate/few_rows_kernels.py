# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
"""Triton kernels of a pass of one token a row: what is packed is read once, for all rows.

R rows of a batch, K inputs, M outputs, J ranks of a layer's adapters; activations are 16 bit, sums fp32. A byte holds
PARTS weights of neighbouring inputs; those of a part are multiplied with every PARTS-th input, so that no weight is
moved. Tensor cores multiply in fp16, in which what codes stand for is exact (of NF4 within 2**-12): inputs come divided
by a power of two so that none is too large, and scales are multiplied in after a group is summed, in fp32.
"""

import struct

import triton
import triton.language as tl

from qlora_space.lowbit.kernels import zero_code

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def _nf4_asm() -> str:
    """PTX: four bytes of codes to fp16, those of high halves in $0 and $1 and of low ones in $2 and $3.

    A code picks the low and the high byte of a number out of registers, as `prmt` picks four bytes by four codes at
    once: eight codes in 23 instructions and no table in memory. Numbers: QLoRA, arXiv 2305.14314, appendix E.
    """
    found = [struct.pack("<e", number) for number in _NF4]
    low, high = bytes(x[0] for x in found), bytes(x[1] for x in found)
    tables = [[hex(n) for n in struct.unpack("<4I", part)] for part in (low, high)]
    lines = [
        ".reg .b32 s, k, m, a, b, l, h;",
        "and.b32 s, $4, 0x77777777;",
        "shr.b32 k, $4, 3;",
        "and.b32 k, k, 0x11111111;",
    ]
    for half in (0, 1):
        if half:
            lines += ["shr.b32 s, s, 16;", "shr.b32 k, k, 16;"]
        lines.append("prmt.b32 m, 0xFF00, 0, k;")  # a byte of ones for each code from 8 on
        for name, (t0, t1, t2, t3) in zip("lh", tables, strict=True):
            lines += [
                f"prmt.b32 a, {t0}, {t1}, s;",
                f"prmt.b32 b, {t2}, {t3}, s;",
                f"lop3.b32 {name}, b, a, m, 0xE4;",  # m ? b : a
            ]
        lines += [f"prmt.b32 ${half}, l, h, 0x7351;", f"prmt.b32 ${2 + half}, l, h, 0x6240;"]
    return "{ " + " ".join(lines) + " }"


def _grid_asm(bits: int) -> str:
    """PTX: four bytes of codes, and at 3 bits their third bits, to fp16s of 256 + code, two registers a part.

    A code's place in a byte is that of the ones among the digits of an fp16 whose exponent is 2**8.
    """
    parts = 2 if bits == 4 else 4
    codes, thirds = f"${2 * parts}", f"${2 * parts + 1}"
    lines = [".reg .b32 v, t;"]
    for part in range(parts):
        right = part * (8 // parts) - 2
        lines += [
            f"shr.b32 v, {codes}, {right};" if right >= 0 else f"shl.b32 v, {codes}, {-right};",
            f"and.b32 v, v, {'0x3C3C3C3C' if bits == 4 else '0x0C0C0C0C'};",
        ]
        if bits == 3:
            lines += [f"shl.b32 t, {thirds}, {4 - part};", "lop3.b32 v, v, t, 0x10101010, 0xF8;"]
        # The bytes of v, each below one that is 0x5C.
        lines += [
            f"prmt.b32 ${2 * part}, v, 0x5C, 0x4140;",
            f"prmt.b32 ${2 * part + 1}, v, 0x5C, 0x4342;",
        ]
    return "{ " + " ".join(lines) + " }"


NF4_ASM = tl.constexpr(_nf4_asm())
ASM2, ASM3, ASM4 = (tl.constexpr(_grid_asm(bits)) for bits in (2, 3, 4))


@triton.jit
def _nf4_scale(
    absmax, code2, absmax2, offset, at, BLOCK2: tl.constexpr, NESTED: tl.constexpr, inside
):
    """fp32, of the blocks `at`."""
    if NESTED:
        codes = tl.load(absmax + at, mask=inside, other=0).to(tl.int32)
        scale = tl.load(code2 + codes) * tl.load(absmax2 + at // BLOCK2, mask=inside, other=0.0)
        scale += tl.load(offset)
    else:
        scale = tl.load(absmax + at, mask=inside, other=0.0)
    return scale


@triton.jit
def _scales(
    scales, second, third, fourth, row, group, K, grid_start, grid_step, zero_bytes, inside,
    GROUP: tl.constexpr, BITS: tl.constexpr, NF4: tl.constexpr, NESTED: tl.constexpr, BLOCK2: tl.constexpr,
):  # fmt: skip
    """Scales and zeros, fp32, of groups and rows that broadcast. second, third, fourth: of NF4 what quantizes the
    scales, of a grid the zeros."""
    groups = K // GROUP
    at = row * groups + group
    inside = inside & (group < groups)
    if NF4:
        scale = _nf4_scale(scales, second, third, fourth, at, BLOCK2, NESTED, inside)
        zero = tl.zeros_like(scale) + grid_start
    else:
        scale = tl.load(scales + at, mask=inside, other=0.0).to(tl.float32)
        zero = zero_code(second + row * zero_bytes, group, groups, BITS, inside)
        zero = grid_start + grid_step * zero.to(tl.float32)
    return scale, zero


@triton.jit
def _bytes(
    codes,
    row,
    at,
    K,
    code_bytes,
    inside,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Bytes of codes (ROWS, SIZE) from `at` on, and at 3 bits four third bits for each."""
    start = codes + row[:, None] * code_bytes
    byte = tl.load(start + at + tl.arange(0, SIZE)[None, :], mask=inside, other=0)
    high = byte
    if BITS == 3:
        pair = tl.load(
            start + K // 4 + at // 2 + tl.arange(0, SIZE // 2)[None, :], mask=inside, other=0
        )
        high = tl.interleave(pair & 15, pair >> 4)
    return byte, high


@triton.jit
def _values(byte, high, table, zero, BITS: tl.constexpr, NF4: tl.constexpr, ASM: tl.constexpr):
    """fp16 of each part of a byte, as four tensors: what NF4's codes stand for, or a uniform grid's code - zero."""
    if NF4 and ASM:
        a, b = tl.inline_asm_elementwise(
            NF4_ASM, "=r,=r,=r,=r,r", [byte], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
        a, b = a - zero, b - zero
        c, d = a, b
    elif ASM and BITS == 4:
        a, b = tl.inline_asm_elementwise(
            ASM4, "=r,=r,=r,=r,r", [byte], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
        a, b = a - (zero + 256), b - (zero + 256)
        c, d = a, b
    elif ASM and BITS == 3:
        a, b, c, d = tl.inline_asm_elementwise(
            ASM3, "=r,=r,=r,=r,=r,=r,=r,=r,r,r", [byte, high],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=4,
        )  # fmt: skip
        a, b, c, d = a - (zero + 256), b - (zero + 256), c - (zero + 256), d - (zero + 256)
    elif ASM and BITS == 2:
        a, b, c, d = tl.inline_asm_elementwise(
            ASM2, "=r,=r,=r,=r,=r,=r,=r,=r,r", [byte],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16), is_pure=True, pack=4,
        )  # fmt: skip
        a, b, c, d = a - (zero + 256), b - (zero + 256), c - (zero + 256), d - (zero + 256)
    elif NF4:
        code = byte.to(tl.int32)
        a, b = (
            tl.load(table + (code >> 4)).to(tl.float16),
            tl.load(table + (code & 15)).to(tl.float16),
        )
        c, d = a, b
    elif BITS == 4:
        code = byte.to(tl.int32)
        a, b = (code & 15).to(tl.float16) - zero, (code >> 4).to(tl.float16) - zero
        c, d = a, b
    else:
        code, third = byte.to(tl.int32), high.to(tl.int32)
        a, b, c, d = code & 3, (code >> 2) & 3, (code >> 4) & 3, code >> 6
        if BITS == 3:
            a, b = a | (third & 1) << 2, b | (third >> 1 & 1) << 2
            c, d = c | (third >> 2 & 1) << 2, d | (third >> 3 & 1) << 2
        a, b = a.to(tl.float16) - zero, b.to(tl.float16) - zero
        c, d = c.to(tl.float16) - zero, d.to(tl.float16) - zero
    return a, b, c, d


@triton.jit(do_not_specialize=["num_rows", "splits", "steps"])
def product(
    x, factor, out, M, codes, scales, second, third, fourth, table, grid_start, grid_step, code_bytes, zero_bytes,
    bias, low, up, partial, arrived, num_rows, K, J, splits, steps, R: tl.constexpr, BITS: tl.constexpr,
    NF4: tl.constexpr, NESTED: tl.constexpr, BLOCK2: tl.constexpr, GROUP: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, RANKS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """ROWS outputs of all rows; x and factor as `prepare` made them. K is divided among `splits` programs, of which the
    last one to arrive adds up the sums, always in the same order. RANKS is 0 without adapters. Sizes of the matrix are
    no constants: a model's linears share one kernel, which takes a second to compile."""
    parts: tl.constexpr = 2 if BITS == 4 else 4
    size: tl.constexpr = GROUP // parts  # bytes of codes of a group
    tile, split = tl.program_id(0), tl.program_id(1)
    row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    r, byte_at = tl.arange(0, R), tl.arange(0, size)
    inside_row, inside_r = row < M, r < num_rows
    total = tl.zeros((ROWS, R), tl.float32)
    for step in range(0, steps):
        for i in tl.static_range(GROUPS):
            group = (split * steps + step) * GROUPS + i
            is_group = group < K // GROUP
            at = group * size + byte_at
            byte, high = _bytes(
                codes, row, group * size, K, code_bytes, inside_row[:, None] & is_group, BITS, ROWS, size
            )  # fmt: skip
            scale, zero = _scales(
                scales, second, third, fourth, row, group, K, grid_start, grid_step, zero_bytes, inside_row,
                GROUP, BITS, NF4, NESTED, BLOCK2,
            )  # fmt: skip
            a, b, c, d = _values(byte, high, table, zero.to(tl.float16)[:, None], BITS, NF4, ASM)
            from_x, of_x = x + r[None, :] * K + at[:, None], inside_r[None, :] & is_group
            found = tl.dot(a, tl.load(from_x, mask=of_x, other=0.0))
            found = tl.dot(b, tl.load(from_x + K // parts, mask=of_x, other=0.0), found)
            if parts == 4:
                found = tl.dot(c, tl.load(from_x + 2 * (K // parts), mask=of_x, other=0.0), found)
                found = tl.dot(d, tl.load(from_x + 3 * (K // parts), mask=of_x, other=0.0), found)
            total += found * scale[:, None]
    if splits > 1:
        tile_at = tl.arange(0, ROWS)[:, None] * R + r[None, :]
        tl.store(partial + (tile * splits + split) * R * ROWS + tile_at, total)
        tl.debug_barrier()
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") == splits - 1:
            total = tl.zeros((ROWS, R), tl.float32)
            for i in range(0, splits):
                theirs = partial + (tile * splits + i) * R * ROWS + tile_at
                total += tl.load(theirs, cache_modifier=".cg")
            tl.store(arrived + tile, 0)
            _finish(
                total, factor, out, row, r, inside_row, inside_r, M, bias, low, up, J, BIAS, RANKS
            )
    else:
        _finish(total, factor, out, row, r, inside_row, inside_r, M, bias, low, up, J, BIAS, RANKS)


@triton.jit
def _finish(
    total, factor, out, row, r, inside_row, inside_r, M, bias, low, up, J, BIAS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """Bias and adapters; rounded as where they are computed one after the other."""
    kind = out.dtype.element_ty
    total *= tl.load(factor + r, mask=inside_r, other=0.0)[None, :]
    if BIAS:
        total += tl.load(bias + row, mask=inside_row, other=0.0).to(tl.float32)[:, None]
    if RANKS > 0:
        rank = tl.arange(0, RANKS)
        of_row = inside_row[:, None] & (rank < J)[None, :]
        b = tl.load(up + row[:, None] * J + rank[None, :], mask=of_row, other=0.0)
        of_r = (rank < J)[:, None] & inside_r[None, :]
        h = tl.load(low + r[None, :] * J + rank[:, None], mask=of_r, other=0.0)
        total = total.to(kind).to(tl.float32) + tl.dot(b, h).to(kind).to(tl.float32)
    tl.store(
        out + r[None, :] * M + row[:, None], total, mask=inside_row[:, None] & inside_r[None, :]
    )


@triton.jit
def prepare(
    x, x_stride, down, strength, low, to, factor, K, J, PARTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Of row r. Program 0: to[r, p, i] = x[r, i PARTS + p] / factor[r], fp16, factor a power of two that makes the
    largest one at most 2. Program 1 + j: low[r, j] = strength[r, j] * sum over k of x[r, k] down[j, k]."""
    r, j = tl.program_id(1), tl.program_id(0) - 1
    x += r * x_stride
    if j < 0:
        largest = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, K, BLOCK):
            k = start + tl.arange(0, BLOCK)
            largest = tl.maximum(
                largest, tl.abs(tl.load(x + k, mask=k < K, other=0.0).to(tl.float32))
            )
        power = tl.exp2(tl.floor(tl.log2(tl.maximum(tl.max(largest, 0), 1e-30))))
        tl.store(factor + r, power)
        for part in tl.static_range(PARTS):
            for start in range(0, K // PARTS, BLOCK):
                i = start + tl.arange(0, BLOCK)
                value = (
                    tl.load(x + i * PARTS + part, mask=i < K // PARTS, other=0.0).to(tl.float32)
                    / power
                )
                tl.store(to + r * K + part * (K // PARTS) + i, value, mask=i < K // PARTS)
    else:
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, K, BLOCK):
            k = start + tl.arange(0, BLOCK)
            a = tl.load(down + j * K + k, mask=k < K, other=0.0).to(tl.float32)
            total += a * tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        h = tl.sum(total, 0).to(low.dtype.element_ty).to(tl.float32)
        tl.store(low + r * J + j, h * tl.load(strength + r * J + j).to(tl.float32))


@triton.jit
def rotate(
    q, k, cos, sin, out, q_row, q_head, k_row, k_head, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    DIM: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """One head of one row, turned by its position (RoPE, arXiv 2104.09864, halves as in transformers)."""
    r, head = tl.program_id(0), tl.program_id(1)
    half: tl.constexpr = DIM // 2
    i = tl.arange(0, SIZE)
    inside = i < half
    if head < QUERIES:
        source = q + r * q_row + head * q_head
    else:
        source = k + r * k_row + (head - QUERIES) * k_head
    first = tl.load(source + i, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + half + i, mask=inside, other=0.0).to(tl.float32)
    turn = r * DIM + i
    c1 = tl.load(cos + turn, mask=inside, other=0.0).to(tl.float32)
    c2 = tl.load(cos + turn + half, mask=inside, other=0.0).to(tl.float32)
    s1 = tl.load(sin + turn, mask=inside, other=0.0).to(tl.float32)
    s2 = tl.load(sin + turn + half, mask=inside, other=0.0).to(tl.float32)
    to = out + (r * (QUERIES + KEYS) + head) * DIM + i
    tl.store(to, first * c1 - second * s1, mask=inside)
    tl.store(to + half, second * c2 + first * s2, mask=inside)


@triton.jit
def keep(
    key, value, keys, values, positions, key_row, key_head, value_row, value_head, row_stride, head_stride,
    position_stride, DIM: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Write one token's key and value of one row and head where its position is."""
    r, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, SIZE)
    inside = i < DIM
    to = r * row_stride + head * head_stride + tl.load(positions + r) * position_stride + i
    tl.store(keys + to, tl.load(key + r * key_row + head * key_head + i, mask=inside), mask=inside)
    tl.store(
        values + to,
        tl.load(value + r * value_row + head * value_head + i, mask=inside),
        mask=inside,
    )


@triton.jit
def attend(
    q, keys, values, mask, out, partial, arrived, scale, q_row, q_head, row_stride, head_stride, position_stride,
    mask_row, length, KEYS: tl.constexpr, SHARED: tl.constexpr, PADDED: tl.constexpr, DIM: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The SHARED queries of one key head of one row, over every SPLITS-th block of positions; the last program to
    arrive puts the parts together (flash decoding, arXiv 2311.01282; online softmax, arXiv 1805.02867)."""
    pair, split = tl.program_id(0), tl.program_id(1)
    r, head = (pair // KEYS).to(tl.int64), pair % KEYS
    g, i = tl.arange(0, PADDED), tl.arange(0, SIZE)
    query = q + r * q_row + (head * SHARED + g[:, None]) * q_head + i[None, :]
    of_query = (g < SHARED)[:, None] & (i < DIM)[None, :]
    h = tl.load(query, mask=of_query, other=0.0)
    top = tl.full((PADDED,), -1e30, tl.float32)
    total = tl.zeros((PADDED,), tl.float32)
    found = tl.zeros((PADDED, SIZE), tl.float32)
    start = split * BLOCK
    while start < length:
        p = start + tl.arange(0, BLOCK)
        seen = tl.load(mask + r * mask_row + p, mask=p < length, other=0) != 0
        if tl.max(seen.to(tl.int32), 0) > 0:
            at = (
                r * row_stride
                + head * head_stride
                + p.to(tl.int64)[:, None] * position_stride
                + i[None, :]
            )
            of_key = seen[:, None] & (i < DIM)[None, :]
            key = tl.load(keys + at, mask=of_key, other=0.0)
            score = tl.dot(h, tl.trans(key)) * scale
            score = tl.where(seen[None, :], score, -1e30)
            new = tl.maximum(top, tl.max(score, 1))
            weight = tl.where(seen[None, :], tl.exp(score - new[:, None]), 0.0)
            shrink = tl.exp(top - new)
            value = tl.load(values + at, mask=of_key, other=0.0)
            found = found * shrink[:, None] + tl.dot(weight.to(value.dtype), value)
            total = total * shrink + tl.sum(weight, 1)
            top = new
        start += SPLITS * BLOCK
    to = out + (r * KEYS * SHARED + head * SHARED + g[:, None]) * DIM + i[None, :]
    if SPLITS > 1:
        parts = partial + pair * SPLITS * PADDED * (SIZE + 2)
        mine = parts + (split * PADDED + g) * (SIZE + 2)
        tl.store(mine[:, None] + i[None, :], found)
        tl.store(mine + SIZE, top)
        tl.store(mine + SIZE + 1, total)
        tl.debug_barrier()
        if tl.atomic_add(arrived + pair, 1, sem="acq_rel") == SPLITS - 1:
            found, total = _together(parts, g, i, PADDED, SIZE, SPLITS)
            tl.store(arrived + pair, 0)
            tl.store(to, found / total[:, None], mask=of_query)
    else:
        tl.store(to, found / total[:, None], mask=of_query)


@triton.jit
def _together(parts, g, i, PADDED: tl.constexpr, SIZE: tl.constexpr, SPLITS: tl.constexpr):
    """Weighted sums and sums of weights of all splits, relative to the largest score of any."""
    top = tl.full((PADDED,), -1e30, tl.float32)
    total = tl.zeros((PADDED,), tl.float32)
    found = tl.zeros((PADDED, SIZE), tl.float32)
    for split in range(SPLITS):
        theirs = parts + (split * PADDED + g) * (SIZE + 2)
        their_top = tl.load(theirs + SIZE, cache_modifier=".cg")
        new = tl.maximum(top, their_top)
        before, now = tl.exp(top - new), tl.exp(their_top - new)
        part = tl.load(theirs[:, None] + i[None, :], cache_modifier=".cg")
        found = found * before[:, None] + part * now[:, None]
        total = total * before + tl.load(theirs + SIZE + 1, cache_modifier=".cg") * now
        top = new
    return found, total
