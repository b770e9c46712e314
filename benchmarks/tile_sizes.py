"""Which tile sizes the heaviest kernels of the fast path are fastest with, and how near to the memory's speed.

    python benchmarks/tile_sizes.py --tokens 8192 2048
    python benchmarks/tile_sizes.py --kernels dequantize        (NF4, 4, 3 and 2 bits)

Shapes of Qwen3-8B, and of Gemma 2 9B for attention (one document; torch's FlashAttention 2, without the cap, beside
it). One JSON line for each choice, the fastest last.
"""

import argparse
import json
from itertools import product

import torch
from bitsandbytes.nn import Linear4bit
from triton.testing import do_bench

from qlora_space.fast import adapter_kernels, attention_kernels, kernels
from qlora_space.fast.attention import Attention, Documents
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
_ATTENTION_TILES = {
    "FORWARD": [(128, 64, 2, 8), (64, 64, 2, 4), (128, 32, 2, 8), (64, 32, 2, 4), (64, 32, 1, 4), (32, 32, 1, 4)],
    "QUERY_GRADIENTS": [(64, 32, 2, 8), (64, 32, 1, 8), (128, 32, 1, 8), (64, 64, 1, 8), (64, 32, 1, 4),
                        (32, 32, 1, 4)],
    "KEY_GRADIENTS": [(32, 64, 2, 8), (32, 64, 1, 8), (64, 64, 1, 8), (64, 64, 2, 8), (32, 128, 1, 8),
                      (32, 32, 1, 4)],
}  # fmt: skip


def main() -> None:
    names = ("gated", "attention", "dequantize")
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="*", default=[8192, 2048])
    parser.add_argument("--kernels", nargs="*", choices=names, default=names)
    options = parser.parse_args()
    for tokens in options.tokens:
        if "gated" in options.kernels:
            _gated(tokens)
        if "attention" in options.kernels:
            _attention(tokens)
    if "dequantize" in options.kernels:
        _dequantize_all()


def _dequantize_all() -> None:
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


def _attention(tokens: int) -> None:
    """Arithmetic as needed: two products forward, five backward, of half the pairs."""
    queries, keys, dim = 16, 8, 256
    q, k, v, dout = (_draw(tokens, n, dim) * 10 for n in (queries, keys, keys, queries))
    docs = Documents(Documents.of([tokens]).starts.cuda(), tokens, 0)
    sizes = {name: getattr(attention_kernels, name) for name in _ATTENTION_TILES}
    flops = tokens * tokens * queries * dim  # of one product over the pairs that are seen

    def line(name: str, tile, attention: Attention) -> dict:
        try:
            out, kept = attention.forward(q, k, v, docs)
            forward = _milliseconds(lambda: attention.forward(q, k, v, docs))
            backward = _milliseconds(lambda: attention.backward(dout, q, k, v, out, kept, docs))
        except Exception as error:  # more shared memory than there is
            return {"kernel": name, "tile": tile, "error": type(error).__name__}
        rate = [round(flops * n / ms / 1e9) for n, ms in ((2, forward), (5, backward))]
        return {"kernel": name, "tokens": tokens, "tile": tile, "forward_ms": forward, "backward_ms": backward,
                "tflop_s": rate}  # fmt: skip

    for name, tiles in _ATTENTION_TILES.items():
        lines = []
        for tile in tiles:
            setattr(attention_kernels, name, tile)
            lines.append(line(name, tile, Attention(dim**-0.5, softcap=50.0)))
        setattr(attention_kernels, name, sizes[name])
        by = "forward_ms" if name == "FORWARD" else "backward_ms"
        _print(lines, lambda one, by=by: -one.get(by, float("inf")))
    _print([line("torch, not capped", None, Attention(dim**-0.5))], str)


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
