"""Which keys a query sees, counted one by one; attention that caps its logits, by its kernels, against float64."""

import pytest
import torch

from qlora_space.fast.attention import Attention, Documents

# Shorter and longer than a tile, of one token, and empty ones at the end, as batches are filled up.
ROWS = [(200,), (70, 1, 90, 39), (30, 100, 0, 0)]


def brute_spans(lengths: tuple[int, ...], window: int) -> tuple[list[int], list[int]]:
    document = [i for i, n in enumerate(lengths) for _ in range(n)]
    pairs = [
        (q, k)
        for q in range(len(document))
        for k in range(q + 1)
        if document[q] == document[k] and (not window or q - k < window)
    ]
    tokens = range(len(document))
    first = [min(k for q, k in pairs if q == t) for t in tokens]
    return first, [max(q for q, k in pairs if k == t) + 1 for t in tokens]


@pytest.mark.parametrize("window", [0, 1, 16])
@pytest.mark.parametrize("lengths", ROWS)
def test_spans_are_those_of_every_pair_looked_at(lengths: tuple[int, ...], window: int) -> None:
    begins, ends = Documents.of(lengths).spans(sum(lengths), window)
    assert (begins.tolist(), ends.tolist()) == brute_spans(lengths, window)
    assert begins.dtype == ends.dtype == torch.int32


def errors(
    device: str, dtype: torch.dtype, lengths: tuple[int, ...], window: int, heads: int, dim: int
) -> list[tuple[float, float]]:
    """Of out, dq, dk and dv to float64: of the kernels, and of the formula in the same dtype."""
    from qlora_space.fast import attention_kernels

    torch.manual_seed(0)
    tokens, keys = sum(lengths), heads // 2
    docs = Documents.of(lengths)
    docs = Documents(docs.starts.to(device), docs.longest, docs.uniform)
    attention = Attention(dim**-0.5, window, softcap=4.0)  # most logits are bent by it
    turned = torch.randn(tokens, heads + keys, dim, device=device, dtype=dtype) * 2
    q, k = turned.split([heads, keys], 1)
    v = torch.randn(tokens, 3 * keys, dim, device=device, dtype=dtype)[:, keys : 2 * keys]
    dout = torch.randn(tokens, heads, dim, device=device, dtype=dtype)
    spans = docs.spans(tokens, window)
    sizes = (attention.scale, attention.softcap)
    out, lse = attention_kernels.attend(q, k, v, spans[0], *sizes)
    got = (out, *attention_kernels.attend_backward(dout, q, k, v, out, lse, *spans, *sizes))
    same = (
        attention._reference(q, k, v, docs),
        *attention._reference_backward(dout, q, k, v, docs),
    )
    wide = [t.double() for t in (dout, q, k, v)]
    wanted = (
        attention._reference(*wide[1:], docs),
        *attention._reference_backward(*wide, docs),
    )
    return [
        (float((g - w).norm() / w.norm()), float((s - w).norm() / w.norm()))
        for g, s, w in zip(got, same, wanted, strict=True)
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("lengths", [*ROWS, (1000, 24), (2048,)])
@pytest.mark.parametrize(("heads", "dim"), [(4, 256), (8, 128), (4, 64)])
def test_capped_attention_is_nearer_to_float64_than_its_formula(
    heads: int, dim: int, lengths: tuple[int, ...], window: int
) -> None:
    for mine, reference in errors("cuda", torch.bfloat16, lengths, window, heads, dim):
        assert mine <= 1.2 * reference


@pytest.mark.gpu
def test_capped_attention_with_the_tiles_of_other_gpus(monkeypatch) -> None:
    from qlora_space.fast import attention_kernels

    monkeypatch.setattr(attention_kernels, "_HOPPER", 0)
    for mine, reference in errors("cuda", torch.bfloat16, (300, 90), 0, 4, 256):
        assert mine <= 1.2 * reference


# Compute capability, and bytes of shared memory that a program may have there (CUDA programming guide, table 27).
SHARED_BYTES = [
    (80, 163 * 1024),
    (86, 99 * 1024),
    (89, 99 * 1024),
    (90, 227 * 1024),
    (120, 99 * 1024),
]


@pytest.mark.parametrize(("capability", "shared"), SHARED_BYTES)
def test_the_widest_heads_fit_the_shared_memory_of_a_gpu(capability: int, shared: int) -> None:
    """By compiling for it, which needs Triton and no GPU."""
    pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from qlora_space.fast import attention_kernels as kernels

    kinds = {
        "begins": "*i32",
        "ends": "*i32",
        "lse": "*fp32",
        "delta": "*fp32",
        "scale": "fp32",
        "cap": "fp32",
    }
    kinds |= dict.fromkeys(("tokens", "q_stride", "k_stride", "v_stride"), "i32")
    large = {
        kernels._attend: kernels.FORWARD,
        kernels._query_gradients: kernels.QUERY_GRADIENTS,
        kernels._key_gradients: kernels.KEY_GRADIENTS,
    }
    for kernel, tile in large.items():
        rows, columns, stages, warps = (
            tile if capability // 10 == kernels._HOPPER else kernels.SMALL
        )
        sizes = {
            "GROUPS": 2,
            "QUERIES": 16,
            "DIM": 256,
            "ROWS": rows,
            "COLUMNS": columns,
            "STAGES": stages,
        }
        names = kernel.arg_names
        signature = {n: "constexpr" if n in sizes else kinds.get(n, "*bf16") for n in names}
        by_16 = [i for i, n in enumerate(names) if signature[n] not in ("constexpr", "fp32")]
        source = ASTSource(
            kernel,
            signature,
            constexprs={(names.index(n),): size for n, size in sizes.items()},
            attrs={(i,): [["tt.divisibility", 16]] for i in by_16},
        )
        built = compile(
            source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}
        )
        assert built.metadata.shared <= shared, (kernel, tile)
