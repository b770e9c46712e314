"""The arithmetic against measured peaks and speeds (docs/PERFORMANCE.md, docs/figures).

FITTED_* are the points that constants of plan/memory.py and plan/speed.py were fitted to: they show that a fit still
holds. COUNTED_FAST are not: no constant comes from them, so they test the arithmetic itself.
"""

import pytest

from qlora_space.core.facts import Hardware, ModelFacts
from qlora_space.plan.memory import adapter_parameters, estimate_memory
from qlora_space.plan.speed import seconds_per_step

H200 = Hardware(
    name="NVIDIA H200", device="cuda", memory_gib=139.7, free_gib=139, cpu_cores=16, disk_free_gib=60
)  # fmt: skip
COMMON = {
    "source": "hub", "sha": "0" * 40, "architecture": "Qwen3ForCausalLM", "model_type": "qwen3", "head_dim": 128,
    "num_key_value_heads": 8, "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip
QWEN3_8B = ModelFacts(
    id="Qwen/Qwen3-8B", hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
    tie_word_embeddings=False, parameters=8_190_735_360, linear_parameters=6_945_767_424, file_bytes=16_381_470_720,
    **COMMON,  # type: ignore[arg-type]
)  # fmt: skip
QWEN3_0_6B = ModelFacts(
    id="Qwen/Qwen3-0.6B", hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
    tie_word_embeddings=True, parameters=596_049_920, linear_parameters=440_401_920, file_bytes=1_192_099_840,
    **COMMON,  # type: ignore[arg-type]
)  # fmt: skip
# base, tokens at once, checkpointing, measured GiB (torch's peak), measured tokens/s
FITTED_PLAIN = [
    (QWEN3_0_6B, 8192, True, 1.60, 13_300),
    (QWEN3_0_6B, 8192, False, 13.63, 22_128),
    (QWEN3_8B, 8192, True, 9.82, 6_650),
    (QWEN3_8B, 8192, False, 54.27, 9_219),
    (QWEN3_8B, 2048, True, 7.19, 3_058),
]


@pytest.mark.parametrize(("base", "tokens", "checkpointing", "gib", "_speed"), FITTED_PLAIN)
def test_the_fit_of_plain_peaks_holds_within_a_tenth(
    base: ModelFacts, tokens: int, checkpointing: bool, gib: float, _speed: int
) -> None:
    parts = estimate_memory(
        base, H200, bits=4, r=16, tokens_at_once=tokens, gradient_checkpointing=checkpointing, optim="adamw_torch"
    )  # fmt: skip
    in_torch = sum(part.gib for part in parts if part.name != "runtime")
    assert in_torch == pytest.approx(gib, rel=0.1)


# base, tokens at once, checkpointing, measured GiB (torch's peak): docs/figures/plan-memory-h200-2026-11-30.jsonl
MEASURED_AT_16_BITS = [
    (QWEN3_0_6B, 3584, True, 1.84),
    (QWEN3_0_6B, 3584, False, 8.96),
    (QWEN3_8B, 3456, True, 17.91),
]


@pytest.mark.parametrize(("base", "tokens", "checkpointing", "gib"), MEASURED_AT_16_BITS)
def test_the_peak_at_16_bits_counts_the_copies_that_adapters_get(
    base: ModelFacts, tokens: int, checkpointing: bool, gib: float
) -> None:
    parts = estimate_memory(
        base, H200, bits=16, r=16, tokens_at_once=tokens, gradient_checkpointing=checkpointing, optim="adamw_torch"
    )  # fmt: skip
    in_torch = sum(part.gib for part in parts if part.name != "runtime")
    assert in_torch == pytest.approx(gib, rel=0.06)


@pytest.mark.parametrize(("base", "tokens", "checkpointing", "_gib", "speed"), FITTED_PLAIN)
def test_the_fit_of_plain_speeds_holds_within_a_factor_of_one_and_a_half(
    base: ModelFacts, tokens: int, checkpointing: bool, _gib: float, speed: int
) -> None:
    step = seconds_per_step(
        base, H200, tokens=tokens, batches=1, gradient_checkpointing=checkpointing
    )
    assert speed / 1.5 < tokens / step < speed * 1.5


@pytest.mark.parametrize(("tokens", "speed"), [(8192, 12_499), (2048, 10_993)])
def test_the_speed_of_a_fast_step_is_estimated_within_a_factor_of_one_and_a_half(
    tokens: int, speed: int
) -> None:
    """Of the point that takes least memory, on an H100; keeping more is up to 1.3 times as fast."""
    step = seconds_per_step(
        QWEN3_8B, H200, tokens=tokens, batches=1, gradient_checkpointing=True, is_fast=True
    )
    assert speed / 1.5 < tokens / step < speed * 1.5


def llama(
    hidden: int, width: int, layers: int, heads: int, keys: int, vocabulary: int
) -> ModelFacts:
    linear = layers * hidden * (2 * heads * 128 + 2 * keys * 128 + 3 * width)
    return QWEN3_8B.model_copy(
        update={
            "hidden_size": hidden, "intermediate_size": width, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": keys, "vocab_size": vocabulary,
            "linear_parameters": linear, "parameters": linear + 2 * vocabulary * hidden,
        }
    )  # fmt: skip


QWEN3_14B = llama(5120, 17408, 40, 40, 8, 151936)
LLAMA_8B = llama(4096, 14336, 32, 32, 8, 128256)
LLAMA_65B = llama(8192, 22016, 80, 64, 64, 32000)
GEMMA_9B = llama(3584, 14336, 42, 16, 8, 256000).model_copy(
    update={
        "model_type": "gemma2", "head_dim": 256, "eager_attention": True, "tie_word_embeddings": True,
        "linear_parameters": 42 * 3584 * (2 * 4096 + 2 * 2048 + 3 * 14336),
        "parameters": 42 * 3584 * (2 * 4096 + 2 * 2048 + 3 * 14336) + 256000 * 3584,
    }
)  # fmt: skip
# base, tokens at once, optimizer, measured GiB (torch's peak). The scores' bytes are fitted to Gemma 2.
FITTED_FAST = [
    (GEMMA_9B, 2048, "adamw_torch", 7.42),
    (GEMMA_9B, 8192, "adamw_torch", 8.12),
]
COUNTED_FAST = [
    (QWEN3_8B, 2048, "adamw_torch", 5.93),
    (QWEN3_8B, 8192, "adamw_torch", 6.55),
    (QWEN3_8B, 2048, "paged_adamw_8bit", 5.65),
    (QWEN3_14B, 2048, "paged_adamw_8bit", 9.51),
    (LLAMA_8B, 163_840, "paged_adamw_8bit", 21.62),
    (LLAMA_8B, 344_064, "paged_adamw_8bit", 40.0),
    (LLAMA_65B, 512, "adamw_torch", 36.42),
    # Shorter trials of the same headline, docs/figures/memory-2026-11-26.jsonl.
    (LLAMA_8B, 16_384, "paged_adamw_8bit", 6.79),
    (LLAMA_8B, 65_536, "paged_adamw_8bit", 11.82),
]


@pytest.mark.parametrize(("base", "tokens", "optim", "gib"), [*FITTED_FAST, *COUNTED_FAST])
def test_the_least_memory_of_a_fast_step_is_estimated_within_a_tenth(
    base: ModelFacts, tokens: int, optim: str, gib: float
) -> None:
    parts = estimate_memory(
        base, H200, bits=4, r=16, tokens_at_once=tokens, gradient_checkpointing=True, optim=optim, is_fast=True
    )  # fmt: skip
    in_torch = sum(part.gib for part in parts if part.name != "runtime")
    assert in_torch == pytest.approx(gib, rel=0.1)


def test_an_adapter_of_rank_16_on_qwen3_8b_has_43_6_million_weights() -> None:
    assert adapter_parameters(QWEN3_8B, 16) == 43_646_976  # peft counts the same


def test_attention_without_a_fused_kernel_is_counted_by_pairs_of_tokens() -> None:
    """Twice the row takes four times the scores, kept of every layer without checkpointing; the fast step's
    evaluations have those of one row."""
    capped = QWEN3_8B.model_copy(update={"eager_attention": True})

    def scores(length: int, **options: bool) -> float:
        plain, with_scores = (
            sum(
                part.gib
                for part in estimate_memory(
                    base, H200, bits=4, r=16, tokens_at_once=length, max_length=length, optim="adamw_torch",
                    **{"gradient_checkpointing": True} | options,
                )
            )
            for base in (QWEN3_8B, capped)
        )  # fmt: skip
        return with_scores - plain

    assert scores(4096) == pytest.approx(4 * scores(2048), abs=0.01)
    assert scores(2048, gradient_checkpointing=False) > 10 * scores(2048)
    assert scores(2048, is_fast=True) < scores(2048) / 2
    assert scores(32768, is_fast=True) > 10 * scores(2048, is_fast=True) >= 0


def test_a_cpu_without_bf16_holds_fp32_and_packed_weights_as_they_are() -> None:
    def sizes(bits: int, *, has_bf16: bool) -> dict[str, float]:
        hardware = H200.model_copy(update={"device": "cpu", "has_bf16": has_bf16})
        parts = estimate_memory(
            QWEN3_0_6B, hardware, bits=bits, r=16, tokens_at_once=512, gradient_checkpointing=False,
            optim="adamw_torch",
        )  # fmt: skip
        return {part.name: part.gib for part in parts}

    for bits in (4, 16):
        narrow, wide = sizes(bits, has_bf16=True), sizes(bits, has_bf16=False)
        same = {"adapter, gradients, optimizer", "runtime"} | (
            {"base weights"} if bits == 4 else set()
        )
        for name, gib in narrow.items():
            assert wide[name] == pytest.approx(gib * (1 if name in same else 2), abs=0.002)
