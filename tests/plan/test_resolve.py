import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_space.core.errors import RequestError
from qlora_space.core.facts import DatasetFacts, Hardware, ModelFacts, TokenLengths
from qlora_space.core.options import Preset
from qlora_space.core.request import TrainingRequest
from qlora_space.plan import Plan, resolve
from qlora_space.plan.memory import packed_base_gib

QWEN3_8B = ModelFacts(
    id="Qwen/Qwen3-8B", source="hub", sha="0" * 40, architecture="Qwen3ForCausalLM", model_type="qwen3",
    hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=False,
    max_position_embeddings=40960, parameters=8_190_735_360, linear_parameters=6_945_767_424,
    file_bytes=16_381_470_720,
)  # fmt: skip


def rows(num_rows: int = 5000, longest: int = 900) -> DatasetFacts:
    lengths = TokenLengths(
        p50=100, p95=400, max=longest, mean=150, truncated_fraction=0, trained_fraction=0.5
    )
    return DatasetFacts(
        id="a/b", sha="1" * 40, format="messages", num_rows=num_rows, is_exact=True, lengths=lengths
    )


def gpu(free_gib: float, name: str = "NVIDIA H200") -> Hardware:
    return Hardware(
        name=name,
        device="cuda",
        memory_gib=free_gib,
        free_gib=free_gib,
        cpu_cores=8,
        disk_free_gib=100,
    )


@given(
    num_rows=st.integers(1, 10**6),
    longest=st.integers(1, 20_000),
    free_gib=st.floats(6, 140),
    preset=st.sampled_from(list(Preset)),
    bits=st.sampled_from([16, 8, 4, 3, 2]),
)
@settings(max_examples=150)
def test_a_plan_is_always_whole(
    num_rows: int, longest: int, free_gib: float, preset: Preset, bits: int
) -> None:
    request = TrainingRequest(preset=preset, bits=bits)  # type: ignore[arg-type]
    plan = resolve(request, QWEN3_8B, rows(num_rows, longest), gpu(free_gib))
    assert plan.estimate.steps >= 1
    assert plan.estimate.seconds > 0
    assert plan.max_length <= QWEN3_8B.max_position_embeddings
    assert sum(part.gib for part in plan.estimate.parts) == pytest.approx(
        plan.estimate.peak_gib, abs=0.02
    )
    assert 0 <= plan.num_eval_rows <= max(1, num_rows // 2)
    assert plan.per_device_train_batch_size * plan.gradient_accumulation_steps <= 32


def test_a_requested_value_is_never_changed() -> None:
    requested = TrainingRequest(
        r=7,
        lora_alpha=3,
        learning_rate=3e-3,
        num_train_epochs=1.5,
        max_length=128,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=5,
        eval_steps=9,
        optim="adamw_torch",
        gradient_checkpointing=True,
        eval_fraction=0.2,
    )
    plan = resolve(requested, QWEN3_8B, rows(), gpu(139))
    given_values = requested.model_dump(exclude_none=True)
    for name in set(given_values) & set(type(plan).model_fields) - {
        "dataset",
        "base",
        "columns",
        "name",
    }:
        assert getattr(plan, name) == given_values[name], name
    assert not {choice.name for choice in plan.choices} & {"r", "learning_rate", "max_length"}


def test_every_choice_says_why() -> None:
    """And everything that an empty request leaves open is a choice."""
    choices = resolve(TrainingRequest(), QWEN3_8B, rows(), gpu(139)).choices
    assert {choice.name for choice in choices} == {
        "max_length",
        "eval_fraction",
        "num_train_epochs",
        "init",
        "calibrated",
        "r",
        "lora_alpha",
        "step_kind",
        "optim",
        "gradient_checkpointing",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "eval_steps",
        "num_scored_rows",
        "forgetting",
        "learning_rate",
        "max_grad_norm",
    }
    assert [choice.name for choice in choices if not choice.why or not choice.value] == []


def test_less_memory_means_checkpointing_then_smaller_batches_then_a_refusal() -> None:
    roomy, tight, none = (
        resolve(TrainingRequest(lora_dropout=0.1), QWEN3_8B, rows(), gpu(g)) for g in (139, 10, 5)
    )
    assert not roomy.gradient_checkpointing
    assert tight.gradient_checkpointing
    assert tight.per_device_train_batch_size < roomy.per_device_train_batch_size
    product = tight.per_device_train_batch_size * tight.gradient_accumulation_steps
    assert product >= roomy.per_device_train_batch_size
    assert tight.estimate.fits
    assert not none.estimate.fits


def test_fewer_bits_need_less_memory() -> None:
    peaks = [
        resolve(
            TrainingRequest(bits=b, gradient_checkpointing=True), QWEN3_8B, rows(), gpu(139)
        ).estimate.least_gib
        for b in (16, 8, 4)
    ]
    assert peaks == sorted(peaks, reverse=True)


def test_a_length_beyond_the_base_is_refused_with_the_limit() -> None:
    with pytest.raises(RequestError, match=r"max_length is 50000.*40960"):
        resolve(TrainingRequest(max_length=50_000), QWEN3_8B, rows(), gpu(139))


def test_a_handful_of_rows_is_all_trained_on() -> None:
    plan = resolve(TrainingRequest(), QWEN3_8B, rows(num_rows=12), gpu(139))
    assert (plan.num_eval_rows, plan.num_samples) == (0, 0)


def test_quick_stops_early() -> None:
    quick = resolve(
        TrainingRequest(preset=Preset.QUICK), QWEN3_8B, rows(num_rows=100_000), gpu(139)
    )
    assert quick.estimate.steps == 100


def test_requested_steps_are_the_steps_whatever_the_data() -> None:
    request = TrainingRequest(max_steps=500)
    assert resolve(request, QWEN3_8B, rows(10), gpu(140)).estimate.steps == 500


def test_requested_epochs_are_not_cut_by_quick() -> None:
    request = TrainingRequest(preset=Preset.QUICK, num_train_epochs=2)
    assert resolve(request, QWEN3_8B, rows(), gpu(140)).max_steps == -1


@pytest.mark.parametrize(("bits", "rate"), [(3, 1e-4), (2, 5e-5)])
def test_low_bits_are_initialized_as_the_repair_and_take_small_updates(
    bits: int, rate: float
) -> None:
    plan = resolve(TrainingRequest(bits=bits), QWEN3_8B, rows(), gpu(139))  # type: ignore[arg-type]
    assert (plan.init, plan.heal, plan.is_low_bit) == ("eora", False, True)
    assert plan.learning_rate == rate
    assert plan.max_grad_norm == 0.3
    assert plan.lora_alpha == plan.r == 32
    assert plan.lora_dropout == 0
    assert {"init", "learning_rate", "max_grad_norm", "r"} <= {c.name for c in plan.choices}


def test_four_bits_are_nf4_unless_a_repair_is_requested() -> None:
    plain, repaired = (
        resolve(TrainingRequest(init=init), QWEN3_8B, rows(), gpu(139)) for init in (None, "svd")
    )
    assert (plain.init, plain.is_low_bit, plain.max_grad_norm) == ("zero", False, 1.0)
    assert (repaired.init, repaired.is_low_bit) == ("svd", True)


@pytest.mark.parametrize("asked", [{"init": "eora"}, {"heal": True}, {"calibrated": True}])
def test_a_repair_of_eight_bits_is_refused(asked: dict) -> None:
    with pytest.raises(RequestError, match="repairs what few bits cost, but bits is 8"):
        resolve(TrainingRequest(bits=8, **asked), QWEN3_8B, rows(), gpu(139))


@pytest.mark.parametrize(
    ("inputs", "size", "asked", "fix"),
    [
        (576, 128, {"bits": 3}, "Set group_size to 64"),
        (4128, 64, {"bits": 4, "init": "eora"}, "Set group_size to 32"),
        (4100, 64, {"mean_bits": 2.5}, "Take 4 bits"),
    ],
)
def test_groups_that_do_not_divide_a_layer_are_refused_with_what_does(
    inputs: int, size: int, asked: dict, fix: str
) -> None:
    base = QWEN3_8B.model_copy(update={"hidden_size": inputs})
    with pytest.raises(RequestError, match=f"group_size is {size}.*{inputs} inputs") as raised:
        resolve(
            TrainingRequest.model_validate(asked | {"group_size": size}), base, rows(), gpu(139)
        )
    assert fix in str(raised.value)
    assert resolve(TrainingRequest(group_size=size), base, rows(), gpu(139)).bits == 4


def test_mixed_bits_need_memory_between_their_widths_and_are_planned_as_the_smaller_one() -> None:
    def planned(**asked: object) -> Plan:
        return resolve(TrainingRequest.model_validate(asked), QWEN3_8B, rows(), gpu(139))

    mixed, two, three = planned(mean_bits=2.5), planned(bits=2), planned(bits=3)
    assert (mixed.bits, mixed.learning_rate) == (2, two.learning_rate)
    assert planned(mean_bits=3.2).bits == 3
    assert mixed.is_low_bit
    assert two.estimate.least_gib < mixed.estimate.least_gib < three.estimate.least_gib
    between = (two.estimate.least_gib + three.estimate.least_gib) / 2
    assert mixed.estimate.least_gib == pytest.approx(between, abs=0.02)


QWEN3_14B = QWEN3_8B.model_copy(
    update={
        "id": "Qwen/Qwen3-14B",
        "parameters": 14_768_307_200,
        "linear_parameters": 13_212_057_600,
    }
)


def within(base_gib: float, base: ModelFacts = QWEN3_14B, **asked: object) -> Plan:
    request = TrainingRequest.model_validate({"base_gib": base_gib} | asked)
    return resolve(request, base, rows(), gpu(139))


@given(base_gib=st.floats(7, 40), group_size=st.sampled_from([32, 64, 128]))
@settings(max_examples=100)
def test_a_size_of_the_base_is_respected_and_nearly_used_up(
    base_gib: float, group_size: int
) -> None:
    plan = within(base_gib, group_size=group_size)
    taken = packed_base_gib(plan.base, plan.mean_bits or 4, group_size)
    assert taken <= base_gib
    assert plan.mean_bits == 0 or taken > 0.98 * base_gib
    assert (plan.mean_bits == 0) == (packed_base_gib(plan.base, 4, group_size) <= base_gib)
    assert plan.bits == (4 if not plan.mean_bits else 2 if plan.mean_bits < 3 else 3)


def test_a_14b_in_8_gib_has_its_bits_and_its_size_in_the_choice() -> None:
    plan = within(8)
    assert (plan.bits, plan.mean_bits, plan.is_low_bit) == (3, 3.01, True)
    assert (within(7.5).bits, within(7.5).mean_bits) == (2, 2.69)
    [chosen] = [choice for choice in plan.choices if choice.name == "mean_bits"]
    assert (chosen.value, chosen.why) == ("3.01", "the base then takes 7.99 of 8 GiB")
    asked = resolve(TrainingRequest(mean_bits=plan.mean_bits), QWEN3_14B, rows(), gpu(139))
    assert asked.estimate == plan.estimate


def test_room_for_four_bits_everywhere_is_four_bits() -> None:
    assert (within(10).bits, within(10).mean_bits, within(10).is_low_bit) == (4, 0, False)


def test_a_size_that_two_bits_do_not_fit_is_refused_with_the_smallest_one() -> None:
    said = r"base_gib is 6, but Qwen/Qwen3-14B takes at least 6\.41 GiB"
    with pytest.raises(RequestError, match=said) as refused:
        within(6)
    assert "Set it to 6.41 or more" in refused.value.hint
    assert within(6.41).mean_bits == 2


def test_a_size_and_mean_bits_together_are_refused() -> None:
    with pytest.raises(RequestError, match=r"mean_bits is 2\.5 and base_gib is 8"):
        within(8, mean_bits=2.5)


def test_a_size_of_a_base_that_is_packed_already_is_refused() -> None:
    ready = QWEN3_14B.model_copy(update={"quantization": "gptq", "quantized_bits": 4})
    with pytest.raises(RequestError, match="quantized already"):
        within(8, ready)


@pytest.mark.parametrize(
    ("asked", "is_own"),
    [({"bits": 2}, True), ({"bits": 2, "calibrated": False}, False), ({"bits": 4}, False),
     ({"mean_bits": 2.5, "calibrated": False}, True), ({"bits": 4, "calibrated": True}, True),
     ({"bits": 3, "init": "srr", "calibrated": False}, True), ({"bits": 16}, False)],
)  # fmt: skip
def test_a_base_that_depends_on_the_calibration_text_is_its_own(asked: dict, is_own: bool) -> None:
    plan = resolve(TrainingRequest(**asked), QWEN3_8B, rows(), gpu(139))
    assert plan.base_is_own == is_own
    assert plan.is_low_bit or not is_own


def test_four_bits_that_are_packed_are_counted_by_their_groups() -> None:
    def weights_gib(**asked: object) -> float:
        request = TrainingRequest.model_validate({"bits": 4} | asked)
        parts = resolve(request, QWEN3_8B, rows(), gpu(139)).estimate.parts
        return next(part.gib for part in parts if part.name == "base weights")

    nf4, packed = weights_gib(), weights_gib(init="eora")
    assert nf4 < packed < weights_gib(init="eora", group_size=32)
    assert packed / nf4 == pytest.approx((4 + 20 / 64) / 4.127, rel=1e-3)


def test_smaller_groups_need_more_memory_at_two_bits_only() -> None:
    def peak(bits: int, group_size: int) -> float:
        request = TrainingRequest(bits=bits, group_size=group_size)  # type: ignore[arg-type]
        return resolve(request, QWEN3_8B, rows(), gpu(139)).estimate.least_gib

    assert peak(2, 128) < peak(2, 64) < peak(2, 32) < peak(4, 64) == peak(4, 32)


def test_the_time_counts_the_quantizing_and_the_heal_of_a_low_bit_base() -> None:
    def seconds(**asked: object) -> float:
        request = TrainingRequest(max_steps=10, **asked)  # type: ignore[arg-type]
        return resolve(request, QWEN3_8B, rows(), gpu(80, "NVIDIA H100")).estimate.seconds

    packed = seconds(bits=2, calibrated=False)
    calibrated, healed = seconds(bits=2), seconds(bits=2, heal=True)
    # 76.6 s were measured for a 14B shape (docs/LOWBIT.md); this base has half its weights.
    assert 25 < packed - seconds(bits=4) < 60
    assert 20 < calibrated - packed < 60
    assert healed - calibrated > 30
    assert seconds(bits=4, calibrated=True) - seconds(bits=4) == calibrated - seconds(bits=4)
    assert seconds(bits=4, init="eora") > seconds(bits=4) + 25
