"""The arithmetic against what benchmarks/command_to_step.py measured on one H200 (docs/PERFORMANCE.md)."""

import pytest

from qlora_space.facts import Hardware, ModelFacts
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
MEASURED = [
    (QWEN3_0_6B, 8192, True, 1.60, 13_300),
    (QWEN3_0_6B, 8192, False, 13.63, 22_128),
    (QWEN3_8B, 8192, True, 9.82, 6_650),
    (QWEN3_8B, 8192, False, 54.27, 9_219),
    (QWEN3_8B, 2048, True, 7.19, 3_058),
]


@pytest.mark.parametrize(("base", "tokens", "checkpointing", "gib", "_speed"), MEASURED)
def test_the_peak_is_estimated_within_a_tenth(
    base: ModelFacts, tokens: int, checkpointing: bool, gib: float, _speed: int
) -> None:
    parts = estimate_memory(
        base, H200, bits=4, r=16, tokens_at_once=tokens, gradient_checkpointing=checkpointing, optim="adamw_torch"
    )  # fmt: skip
    in_torch = sum(part.gib for part in parts if part.name != "runtime")
    assert in_torch == pytest.approx(gib, rel=0.1)


@pytest.mark.parametrize(("base", "tokens", "checkpointing", "_gib", "speed"), MEASURED)
def test_the_speed_is_estimated_within_a_factor_of_one_and_a_half(
    base: ModelFacts, tokens: int, checkpointing: bool, _gib: float, speed: int
) -> None:
    step = seconds_per_step(
        base, H200, tokens=tokens, batches=1, gradient_checkpointing=checkpointing
    )
    assert speed / 1.5 < tokens / step < speed * 1.5


@pytest.mark.parametrize(("tokens", "gib", "speed"), [(8192, 9.16, 12_159), (2048, 6.61, 10_954)])
def test_a_fast_step_is_estimated_by_the_least_it_takes(
    tokens: int, gib: float, speed: int
) -> None:
    """Peak and speed of keeping each layer's input alone, on an H100; keeping more is up to 1.3 times as fast."""
    parts = estimate_memory(
        QWEN3_8B, H200, bits=4, r=16, tokens_at_once=tokens, gradient_checkpointing=True, optim="adamw_torch",
        is_fast=True,
    )  # fmt: skip
    in_torch = sum(part.gib for part in parts if part.name != "runtime")
    assert in_torch == pytest.approx(gib, rel=0.1)
    step = seconds_per_step(
        QWEN3_8B, H200, tokens=tokens, batches=1, gradient_checkpointing=True, is_fast=True
    )
    assert speed / 1.5 < tokens / step < speed * 1.5


def test_an_adapter_of_rank_16_on_qwen3_8b_has_43_6_million_weights() -> None:
    assert adapter_parameters(QWEN3_8B, 16) == 43_646_976  # peft counts the same
