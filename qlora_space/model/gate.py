"""The gate before training: is the low-bit base close to its original, degraded, or broken?"""

import math
from typing import Literal

from qlora_space.core.errors import ModelError
from qlora_space.core.events import Gate, QualityPoint
from qlora_space.lowbit import Evaluation
from qlora_space.runs import Quality

# Between 2 bits with their repair and without it, on learned weights (docs/LOWBIT.md).
_BROKEN_PPL_RATIO = 5.0
_BROKEN_TOP1 = 1 / 3
_CLOSE_KL = 0.1  # nats a token; NF4 and calibrated 4 bits are on either side of it or below
_MORE_BITS = {2: 3, 3: 4, 4: 8}
_WORST = 1e12  # JSON knows no infinity: what is not finite is stored as far beyond broken
_LARGEST_PPL = math.exp(27)


def quality_point(
    name: Literal["16 bit", "quantized", "start", "healed"], found: Evaluation
) -> QualityPoint:
    """An evaluation by its stored name ("start" is the base with its repair), in numbers that JSON can hold."""
    return QualityPoint(
        name=name,
        ppl=found.perplexity if found.perplexity < _LARGEST_PPL else _WORST,
        kl=found.kl if math.isfinite(found.kl) else _WORST,
        top1=found.top1,
    )


def gate_of(quality: Quality) -> Gate:
    """Broken: not finite, five times the perplexity, or fewer than a third of the next tokens the same. Close: nearly
    the same next-token distributions. Degraded: between them."""
    reference, last = quality.points[0], quality.points[-1]
    ratio = last.ppl / reference.ppl
    is_sound = ratio <= _BROKEN_PPL_RATIO and last.top1 >= _BROKEN_TOP1
    figures = (
        f"perplexity {last.ppl:.3g}, at 16 bits {reference.ppl:.3g}; {100 * last.top1:.0f} % of its next words are "
        "those of the 16-bit base"
    )
    is_close = is_sound and last.kl <= _CLOSE_KL
    state = (
        "close to its original" if is_close else "degraded, not broken" if is_sound else "broken"
    )
    is_left_out = quality.init != "zero" and all(p.name != "start" for p in quality.points)
    left_out = (
        f" The {quality.init} repair made it no better and is left out." if is_left_out else ""
    )
    bits = quality.mean_bits or quality.bits
    return Gate(
        bits=bits,
        init=quality.init,
        points=quality.points,
        is_broken=not is_sound,
        why=f"At {bits:g} bits this base is {state}: {figures}.{left_out}",
        text=quality.text,
    )


def require_sound_base(gate: Gate, quality: Quality) -> None:
    """Raises ModelError for a broken base, with the remedies that were not tried yet, cheapest first."""
    if not gate.is_broken:
        return
    remedies = [
        text
        for text, is_untried in (
            ("quantize by the calibration text (calibrated)", not quality.calibrated),
            ("start from the repair (init: eora)", quality.init == "zero"),
            ("heal before training", not quality.heal),
            ("use groups of 32 (group_size)", quality.group_size > 32),
            (f"use {_MORE_BITS[quality.bits]} bits", True),
            ("choose a larger base", True),
        )
        if is_untried
    ]
    raise ModelError(gate.why, "Try, cheapest first: " + "; ".join(remedies) + ".")
