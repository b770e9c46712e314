"""The gate: which bases are broken, and what the person can try instead."""

import math

import pytest

from qlora_space.core.errors import ModelError
from qlora_space.core.events import Gate, QualityPoint
from qlora_space.lowbit import Evaluation
from qlora_space.model.gate import gate_of, quality_point, require_sound_base
from qlora_space.runs import Quality


def gate(ppl: float, top1: float, init: str = "eora") -> tuple[Gate, Quality]:
    points = (
        QualityPoint(name="16 bit", ppl=30.0, kl=0, top1=1),
        QualityPoint(name="start", ppl=ppl, kl=1, top1=top1),
    )
    quality = Quality(
        base_id="x", base_sha="y", bits=2, init=init, heal=False, group_size=64, r=8, calibrated=True,
        bits_per_weight=2.28, text="your held-out rows", points=points,
    )  # fmt: skip
    return gate_of(quality), quality


def test_the_gate_is_red_for_a_broken_base_and_names_what_was_not_tried() -> None:
    fine, quality = gate(149.0, 0.5)
    assert not fine.is_broken
    require_sound_base(fine, quality)
    for ppl, top1 in ((151.0, 0.5), (60.0, 0.2), (1e12, 0.9)):
        found, quality = gate(ppl, top1)
        assert found.is_broken
        with pytest.raises(ModelError, match="At 2 bits this base is broken") as caught:
            require_sound_base(found, quality)
        assert "cheapest first: heal before training; use groups of 32" in caught.value.hint
    with pytest.raises(ModelError) as caught:
        require_sound_base(*gate(301.0, 0.5, "zero"))
    assert "cheapest first: start from the repair" in caught.value.hint
    by_weights = gate(301.0, 0.5)[1].model_copy(update={"calibrated": False})
    with pytest.raises(ModelError) as caught:
        require_sound_base(gate_of(by_weights), by_weights)
    assert (
        "cheapest first: quantize by the calibration text (calibrated); heal" in caught.value.hint
    )
    found, quality = gate(301.0, 0.5)
    for bits, more in ((2, 3), (3, 4), (4, 8)):
        with pytest.raises(ModelError, match=f"; use {more} bits; "):
            require_sound_base(found, quality.model_copy(update={"bits": bits}))


def test_a_base_with_nearly_the_same_next_tokens_is_close_to_its_original() -> None:
    points = (
        QualityPoint(name="16 bit", ppl=12.28, kl=0, top1=1),
        QualityPoint(name="quantized", ppl=12.8, kl=0.079, top1=0.87),
    )
    quality = gate(30, 0.9, "zero")[1].model_copy(update={"bits": 4, "points": points})
    assert gate_of(quality).why.startswith(
        "At 4 bits this base is close to its original: perplexity 12.8"
    )
    farther = points[1].model_copy(update={"kl": 0.292})
    quality = quality.model_copy(update={"points": (points[0], farther)})
    assert "is degraded, not broken" in gate_of(quality).why


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e13])
def test_figures_that_are_not_finite_are_stored_as_numbers_that_json_can_hold(bad: float) -> None:
    point = quality_point("quantized", Evaluation(perplexity=bad, kl=bad, top1=0.0))
    assert QualityPoint.model_validate_json(point.model_dump_json()) == point
    assert point.ppl == 1e12
    assert point.kl == (1e12 if not math.isfinite(bad) else bad)
