"""Low bits as HTML: the bit widths on the form, as a chart and a table, and the quality gate of a run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isclose
from typing import get_args

from qlora_space.app.ui.render.html import icon, table, text
from qlora_space.core.events import Gate
from qlora_space.core.options import Bits
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import gib, percent, rough_duration, significant
from qlora_space.plan import Plan, least_gib_at
from qlora_space.plan.low_bit import default_init, measured_like
from qlora_space.plan.memory import bits_per_weight, stored_base_gib
from qlora_space.plan.speed import low_bit_seconds
from qlora_space.runs import Quality

INITS = {
    "zero": "no repair",
    "svd": "SVD repair",
    "diagonal": "diagonal repair",
    "eora": "EoRA repair",
    "srr": "SRR repair",
}
_NOT_MEASURED = _UNKNOWN = "–"


_NF4 = 4


@dataclass(frozen=True)
class _Way:
    """A width; at 4 bits there are two, NF4 and calibrated."""

    bits: int
    calibrated: bool


def needed_gib(request: TrainingRequest, plan: Plan) -> dict[int, float | None]:
    """What the whole plan needs at each width; None where that width cannot work."""
    return {bits: least_gib_at(_at(request, bits), plan) for bits in get_args(Bits)}


def _at(request: TrainingRequest, bits: int) -> TrainingRequest:
    """The same at one width: no mixed bits, and above 4 no repair, since there is nothing to repair."""
    unmixed = {"bits": bits, "mean_bits": None, "base_gib": None}
    unrepaired = {"init": None, "heal": False, "calibrated": None} if bits > 4 else {}
    return request.model_copy(update=unmixed | unrepaired)


def _as_measured(request: TrainingRequest, quality: Quality) -> TrainingRequest:
    """The same on the base that was measured."""
    changed = {
        "mean_bits": quality.mean_bits or None,
        "group_size": quality.group_size,
        "init": quality.init,
        "heal": quality.heal,
        "calibrated": quality.calibrated,
        "r": quality.r,
    }
    return _at(request, quality.bits).model_copy(update=changed)


def bit_widths(request: TrainingRequest, plan: Plan, known: Iterable[Quality]) -> str:
    """Every width of this base: memory, and quality where a run or `quantize` has measured it here."""
    found, rows = list(known), []
    for way in _ways(plan):
        measured = [q for q in found if _is_of(way, q)]
        if measured:
            rows += [
                (_name(q), *_measured_sizes(request, plan, q), _made_in(way, plan), *_quality(q))
                for q in measured
            ]
        else:
            rows.append(
                (
                    _expected(way),
                    *_planned(way, request, plan),
                    *(_NOT_MEASURED, _NOT_MEASURED, _expected_words(way, plan)),
                )
            )
    columns = (
        "Base",
        "Bits stored",
        "Memory needed",
        "Made in about",
        "Perplexity",
        "At 16 bit, same text",
        "Same next word",
    )
    body = table(columns, rows, "What each width costs", "bit-widths")
    title = "What each width costs on this base"
    like = measured_like(plan.base)
    other = f"With “about”: as on {like.name}, not on this base. " if like else ""
    note = (
        f"<p>{text(other) if 'about ' in body else ''}Perplexity is known where a run at that width, or qlora-space "
        "quantize, has measured it here, each on its own text: compare it with 16 bit in its row."
        f"{text(_advice(found, request, plan))}</p>"
    )
    shown = f"{_ladder(_steps(plan, found))}{body}{note}"
    return f'<details class="bit-widths"{_open(plan)}><summary>{title}</summary>{shown}</details>'


def same_words(plan: Plan, known: Sequence[Quality]) -> dict[int, str]:
    """For each width how often its next word is that of 16 bits: measured here, or '≈' as on another base."""
    found = {}
    for bits in get_args(Bits):
        way = _Way(bits, calibrated=bits < _NF4)
        measured = _plain(way, known)
        best = max((q.points[-1].top1 for q in measured), default=None)
        found[bits] = percent(best) if best is not None else _expected_words(way, plan, "≈")
    return found


@dataclass(frozen=True)
class _Step:
    """A width on the chart; is_here: measured on this base."""

    name: str
    gib: float
    top1: float
    is_here: bool


def _steps(plan: Plan, known: Sequence[Quality]) -> list[_Step]:
    """The packed widths, smallest first."""
    steps = []
    for way in _ways(plan):
        measured = _plain(way, known)
        if measured:
            best = max(measured, key=lambda q: q.points[-1].top1)
            stored, top1 = best.bits_per_weight, best.points[-1].top1
        else:
            expected = _top1_elsewhere(way, plan)
            if expected is None:
                continue
            is_packed = way.calibrated
            stored = bits_per_weight(way.bits, plan.group_size, is_packed=is_packed)
            top1 = expected
        size = stored_base_gib(plan.base, stored)
        name = _expected(way) if way.bits == _NF4 else f"{way.bits} bit"
        steps.append(_Step(name, size, top1, is_here=bool(measured)))
    return sorted(steps, key=lambda step: step.gib)


def _ladder(steps: Sequence[_Step]) -> str:
    """Size against quality; positions are shares of the plot, so that words keep their size on a phone."""
    if len(steps) < 2:
        return ""
    least, most = steps[0].gib, steps[-1].gib
    floor = min(0.5, *(step.top1 for step in steps)) * 0.8
    dots, best = [], 0.0
    for i, step in enumerate(steps):
        across = 4 + 90 * (step.gib - least) / max(most - least, 1e-9)
        up = 100 * (step.top1 - floor) / (1 - floor)
        side = (
            "right" if i == 0 else "left" if step.top1 > best else "below"
        )  # beside no better one
        best = max(best, step.top1)
        words = f"{step.name}: {'' if step.is_here else '≈ '}{percent(step.top1)}"
        dots.append(
            f'<li class="{side}{" here" if step.is_here else ""}" style="left:{across:.1f}%;bottom:{up:.1f}%">'
            f"<span>{text(words)}</span></li>"
        )
    return (
        '<figure class="ladder"><figcaption>How often the next word is that of 16 bits, by size of the base '
        f"(≈, hollow: as on another base)</figcaption><ol>{''.join(dots)}</ol>"
        f'<div class="axis"><span>{gib(least)}</span><span>{gib(most)}</span></div></figure>'
    )


def _top1_elsewhere(way: _Way, plan: Plan) -> float | None:
    """As on the measured base of the family; None where nothing like it was measured."""
    like = measured_like(plan.base)
    if like is None or plan.base.num_experts or plan.base.quantization:
        return None
    alike = (w.top1 for w in like.widths if (w.bits, w.calibrated) == (way.bits, way.calibrated))
    return next(alike, None)


def _expected_words(way: _Way, plan: Plan, about: str = "about") -> str:
    if way.bits == 16:
        return percent(1.0)
    top1 = _top1_elsewhere(way, plan)
    return f"{about} {percent(top1)}" if top1 is not None else _NOT_MEASURED


def _open(plan: Plan) -> str:
    return " open" if plan.is_low_bit else ""


def _ways(plan: Plan) -> list[_Way]:
    ways = [_Way(bits, calibrated=bits < _NF4) for bits in get_args(Bits)]
    if not plan.base.num_experts and not plan.base.quantization:
        ways.insert(ways.index(_Way(_NF4, calibrated=False)) + 1, _Way(_NF4, calibrated=True))
    return ways


def _is_of(way: _Way, quality: Quality) -> bool:
    return quality.bits == way.bits and (way.bits != _NF4 or quality.calibrated == way.calibrated)


def _plain(way: _Way, known: Sequence[Quality]) -> list[Quality]:
    """Of the width as it is by default: mixed bits go by the smaller one's name, and a heal is asked for."""
    return [q for q in known if _is_of(way, q) and not (q.mean_bits or q.heal)]


def _planned(way: _Way, request: TrainingRequest, plan: Plan) -> tuple[str, str, str]:
    asked = _at(request, way.bits)
    if way.bits == _NF4:
        plain = {"init": None, "heal": False, "calibrated": way.calibrated}
        asked = asked.model_copy(update=plain)
    is_packed = way.calibrated or way.bits < _NF4
    stored = bits_per_weight(way.bits, plan.group_size, is_packed=is_packed)
    return f"{stored:.2f}", shown_gib(least_gib_at(asked, plan)), _made_in(way, plan)


def _made_in(way: _Way, plan: Plan) -> str:
    """A packed base is made once and stored; the others are made as they are loaded."""
    if not (way.calibrated or way.bits < _NF4):
        return "as it loads"
    seconds = low_bit_seconds(plan.base, plan.hardware, is_healed=False, calibrated=way.calibrated)
    return rough_duration(seconds)


def _expected(way: _Way) -> str:
    if way.bits == _NF4:
        return "4 bit, calibrated" if way.calibrated else "4 bit (NF4)"
    init = default_init(way.bits)
    return f"{way.bits} bit" + (f", {INITS[init]}" if init != "zero" else "")


def _advice(known: Sequence[Quality], request: TrainingRequest, plan: Plan) -> str:
    """The narrowest width that is closer to 16 bit than NF4 on the same text; "" where none is known to be."""
    nf4 = [q for q in known if _is_of(_Way(_NF4, calibrated=False), q) and q.init == "zero"]
    closer = [
        (q, other)
        for other in nf4
        for q in known
        if isclose(q.points[0].ppl, other.points[0].ppl, rel_tol=1e-3)
        and (q.bits < _NF4 or q.calibrated)
        and q.points[-1].kl < other.points[-1].kl
    ]
    if not closer:
        return ""
    best, other = min(closer, key=lambda pair: (pair[0].bits_per_weight, pair[0].points[-1].kl))
    kl, nf4_kl = (significant(q.points[-1].kl) for q in (best, other))
    weights = plan.base.linear_parameters / 8 / 2**30
    saved = (other.bits_per_weight - best.bits_per_weight) * weights
    size = f"{gib(abs(saved))} {'smaller' if saved > 0 else 'larger'}"
    return f" {_name(best)}, is closer to 16 bit than NF4 (KL {kl} and {nf4_kl}) and {size}."


def _name(quality: Quality) -> str:
    if quality.bits == _NF4 and quality.init == "zero" and not (quality.heal or quality.calibrated):
        return "4 bit (NF4)"
    healed = ", healed" if quality.heal else ""
    bits = f"{quality.mean_bits:g} bit, mixed" if quality.mean_bits else f"{quality.bits} bit"
    rounded = ", calibrated" if quality.calibrated else ""
    return f"{bits}{rounded}, {INITS[quality.init]}{healed}, rank {quality.r}, groups of {quality.group_size}"


def _measured_sizes(request: TrainingRequest, plan: Plan, quality: Quality) -> tuple[str, str]:
    planned = least_gib_at(_as_measured(request, quality), plan)
    return f"{quality.bits_per_weight:.2f}", shown_gib(planned)


def shown_gib(value: float | None) -> str:
    """'7.5 GiB'; a dash for a width that cannot work."""
    return gib(value) if value is not None else _UNKNOWN


def _quality(quality: Quality) -> tuple[str, str, str]:
    """Rows were measured on different texts: each is shown with its own 16-bit base."""
    original, last = quality.points[0], quality.points[-1]
    return _ppl(last.ppl), _ppl(original.ppl), percent(last.top1)


def _ppl(value: float) -> str:
    return "far too large" if value > 1e6 else significant(value)


def _sound(found: Gate) -> str:
    return "Close to its original" if "is close to" in found.why else "Degraded, not broken"


def gate(found: Gate) -> str:
    """Passed or not, in words and with an icon; every quality point of the base beside the 16-bit one."""
    names = {
        "16 bit": "16 bit, the original",
        "quantized": f"{found.bits:g} bit",
        "start": f"{found.bits:g} bit, {INITS.get(found.init, found.init)}",
        "healed": f"{found.bits:g} bit, {INITS.get(found.init, found.init)}, healed",
    }
    rows = [
        (
            names[p.name],
            _ppl(p.ppl),
            f"{p.kl:.3f}" if p.kl < 1e6 else "far too large",
            percent(p.top1),
        )
        for p in found.points
    ]
    columns = ("Base", "Perplexity", "KL, nats a token", "Same next word")
    state, icon_name, title = (
        ("red", "error", "Broken") if found.is_broken else ("green", "done", _sound(found))
    )
    left_out = (
        "" if "left out" not in found.why else " The repair made it no better and is left out."
    )
    measured = (
        f"Measured on {found.text}, before training. Perplexity and KL: lower is better.{left_out}"
    )
    return (
        f'<section class="gate gate-{state}"><h3>{icon(icon_name)}{title}: the base at {found.bits:g} bit</h3>'
        f"{table(columns, rows, 'The base at each step', 'before-after')}"
        f"<p>{text(measured)}</p></section>"
    )
