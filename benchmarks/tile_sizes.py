"""Which tile sizes the heaviest kernels of the fast path are fastest with, and how near to the memory's speed.

    python benchmarks/tile_sizes.py --tokens 8192 2048
    python benchmarks/tile_sizes.py --tokens            (dequantization alone: NF4, 4, 3 and 2 bits)

Shapes of Qwen3-8B. One JSON line for each choice, the fastest last.
"""

import argparse
import json
from itertools import product

import torch
from bitsandbytes.nn import Linear4bit
from triton.testing import do_bench

from qlora_space.fast import adapter_kernels, kernels
from qlora_space.fast.ops import dequantize
from qlora_space.lowbit import kernels as low_bit_kernels
from qlora_space.lowbit.grid import grid_of
from qlora_space.lowbit.linear import LowBitLinear

_HIDDEN, _WIDTH = 4096, 12288
_TILES = [
    (64, 64, 16, 4, 1), (64, 64, 16, 4, 2), (64, 64, 8, 4, 2), (64, 64, 16, 4, 3), (64, 64, 8, 4, 3),
    (64, 64, 16, 8, 2),
    (64, 32, 24, 4, 1), (64, 32, 24, 4, 2), (64, 32, 12, 4, 2), (64, 32, 48, 4, 2), (64, 32, 24, 4, 3),
    (64, 32, 24, 4, 4), (128, 32, 24, 8, 2), (128, 32, 24, 8, 3), (128, 64, 16, 8, 2),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="*", default=[8192, 2048])
    for tokens in parser.parse_args().tokens:
        _gated(tokens)
    for rows in (_HIDDEN, 1024, _WIDTH):
        _dequantize("nf4", rows, [_nf4(rows) for _ in range(4)], 4.127)
        for bits in (4, 3, 2):
            low = [_low_bit(rows, bits) for _ in range(4)]
            _dequantize(f"{bits} bits", rows, low, low[0].bits_per_weight)


def _draw(*size: int) -> torch.Tensor:
    return torch.randn(*size, device="cuda", dtype=torch.bfloat16) * 0.1


def _gated(tokens: int) -> None:
    gate_up, grad = _draw(tokens, 2 * _WIDTH), _draw(tokens, _WIDTH)
    h, b, a, g = _draw(tokens, 32), _draw(2 * _WIDTH, 32), _draw(16, _WIDTH), _draw(tokens, 16)
    lines = []
    for tile in _TILES:
        adapter_kernels.GATED = adapter_kernels.GATED_BACKWARD = tile
        forward = _milliseconds(lambda: kernels.gated(gate_up, h, b, a, False))
        backward = _milliseconds(lambda: kernels.gated_backward(gate_up, h, b, a, g, grad, False))
        rate = [n * tokens * _WIDTH * 2 / ms / 1e9 for n, ms in ((3, forward), (6, backward))]
        lines.append(
            {"kernel": "gated", "tokens": tokens, "tile": tile, "forward_ms": forward,
             "backward_ms": backward, "tb_s": [round(r, 2) for r in rate]}
        )  # fmt: skip
    _print(lines, lambda line: -line["forward_ms"])
    _print(lines, lambda line: -line["backward_ms"])


def _nf4(rows: int) -> torch.nn.Module:
    return Linear4bit(_HIDDEN, rows, bias=False, quant_type="nf4").cuda()


def _low_bit(rows: int, bits: int) -> LowBitLinear:
    linear = LowBitLinear(_HIDDEN, rows, grid_of(bits, 64), device="cuda")
    linear.codes.random_(0, 256)
    linear.scales.uniform_(0.01, 0.02)
    return linear


def _dequantize(name: str, rows: int, linears: list, bits_per_weight: float) -> None:
    """Reads the packed weight and writes it in bf16; four of them in turn, so that caches do not help."""
    out = _draw(rows, _HIDDEN)
    lines = []
    for blocks, warps in product((32, 64, 128, 256), (4, 8)):
        kernels.DEQUANTIZE = (blocks, warps)
        low_bit_kernels.TILE = (blocks * 64, warps)

        def run() -> None:
            for linear in linears:
                dequantize(linear, out)

        graph = torch.cuda.CUDAGraph()
        run()
        with torch.cuda.graph(graph):
            run()
        ms = _milliseconds(graph.replay) / len(linears)
        rate = rows * _HIDDEN * (2 + bits_per_weight / 8) / ms / 1e9
        lines.append(
            {"kernel": f"dequantize {name}", "rows": rows, "blocks": blocks, "warps": warps,
             "ms": round(ms, 4), "tb_s": round(rate, 2)}
        )  # fmt: skip
    _print(lines, lambda line: -line["ms"])


def _milliseconds(run) -> float:
    return round(do_bench(run, warmup=5, rep=25, return_mode="median"), 4)


def _print(lines: list[dict], key) -> None:
    for line in sorted(lines, key=key):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
