"""Low bits as HTML: the table of bit widths on the form, and the quality gate of a run."""

from collections.abc import Iterable
from typing import get_args

from qlora_space.app.ui.render.html import icon, table, text
from qlora_space.core.events import Gate
from qlora_space.core.options import Bits
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import gib, percent, significant
from qlora_space.plan import Plan, least_gib_at
from qlora_space.plan.low_bit import default_init
from qlora_space.plan.memory import bits_per_weight
from qlora_space.runs import Quality

INITS = {
    "zero": "no repair",
    "svd": "SVD repair",
    "diagonal": "diagonal repair",
    "eora": "EoRA repair",
    "srr": "SRR repair",
}
_NOT_MEASURED = _UNKNOWN = "–"


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
    found, needed = list(known), needed_gib(request, plan)
    rows = []
    for bits in get_args(Bits):
        measured = [q for q in found if q.bits == bits]
        planned = (f"{bits_per_weight(bits, plan.group_size):.2f}", shown_gib(needed[bits]))
        if bits == 16:
            rows.append(("16 bit", *planned, _NOT_MEASURED, _NOT_MEASURED, "100 %"))
        elif measured:
            rows += [(_name(q), *_measured_sizes(request, plan, q), *_quality(q)) for q in measured]
        else:
            rows.append((_expected(bits), *planned, *[_NOT_MEASURED] * 3))
    columns = (
        "Base",
        "Bits stored",
        "Memory needed",
        "Perplexity",
        "At 16 bit, same text",
        "Same next word",
    )
    body = table(columns, rows, "What each width costs", "bit-widths")
    title = "What each width costs on this base"
    note = (
        "<p>Quality is known where a run at that width, or qlora-space quantize, has measured it here, each on its "
        "own text: compare it with 16 bit in its row.</p>"
    )
    return (
        f'<details class="bit-widths"{_open(plan)}><summary>{title}</summary>{body}{note}</details>'
    )


def _open(plan: Plan) -> str:
    return " open" if plan.is_low_bit else ""


def _expected(bits: int) -> str:
    init = default_init(bits)
    return f"{bits} bit" + (f", {INITS[init]}" if init != "zero" else "")


def _name(quality: Quality) -> str:
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
        ("red", "error", "Broken") if found.is_broken else ("green", "done", "Degraded, not broken")
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
