"""The card of a plan: what will happen, what it needs, what was chosen and why."""

from collections.abc import Sequence

from qlora_space.app.ui.render.data import fix_button
from qlora_space.app.ui.render.html import icon, notice, text
from qlora_space.app.ui.render.places import places, smaller
from qlora_space.app.ui.uploads import shown_name
from qlora_space.core.inspection import Change
from qlora_space.core.options import Preset
from qlora_space.core.wording import count, counted, gib, percent, price, rough_duration, width
from qlora_space.plan import KEPT_FOR_SPEED, MemoryPart, Plan, time_in_words


def summary(plan: Plan, quick: Plan | None = None) -> str:
    """The figures of the card, as a list of names and values; beside the time a button to `quick`."""
    estimate, data, base = plan.estimate, plan.dataset, plan.base
    bits = width(plan.mean_width, calibrated=plan.calibrated)
    about = "" if estimate.is_exact else "about "
    rows = f"{about}{counted(estimate.rows, 'row')}, {count(estimate.row_tokens)} tokens"
    held_out = f"{about}{counted(estimate.held_out_rows, 'row')}" if plan.num_eval_rows else "none"
    learned = f"{percent(data.lengths.trained_fraction)} of the tokens"
    pairs = [
        ("Data", rows),
        ("Held out", held_out),
        ("Learned from", learned),
        ("Base", f"{shown_name(base.id)} ({count(base.parameters)}), {bits}"),
        ("Training", _training(plan)),
        ("GPUs", f"{plan.num_processes} share every step" if plan.num_processes > 1 else ""),
        ("Time", f"about {time_in_words(estimate)}"),
        ("Publish", plan.publishing.in_words if plan.publishing else ""),
        ("Place", f"a job on {plan.offer.label}" if plan.offer else ""),
        ("Price", _price(plan)),
    ]
    beside = {"Time": _quick_button(quick)} if quick else {}
    items = "".join(f"<dt>{k}</dt><dd>{text(v)}{beside.get(k, '')}</dd>" for k, v in pairs if v)
    return f'<dl class="summary">{items}</dl>'


def _price(plan: Plan) -> str:
    if plan.offer:
        return f"about {price(plan.offer.usd)}, at most {price(plan.offer.most_usd)}"
    return f"about {price(plan.estimate.cost_usd)}" if plan.estimate.cost_usd > 0 else ""


def _quick_button(quick: Plan) -> str:
    label = f"Quick look: about {rough_duration(quick.estimate.seconds)}"
    return f"<div>{fix_button(Change(field='preset', value=Preset.QUICK), label)}</div>"


def glance(plan: Plan) -> str:
    """Time and fit in a line, beside Start on a small screen."""
    estimate = plan.estimate
    fit = f"{gib(estimate.peak_gib)} of {gib(plan.hardware.free_gib)}"
    fit += f", at least {gib(estimate.least_gib)}" if _keeps_more(plan) else ""
    word, mark = ("Fits", "done") if estimate.fits else ("Does not fit", "error")
    return (
        f'<p class="glance {"fits" if estimate.fits else "over"}"><b>about {rough_duration(estimate.seconds)}</b>'
        f'<span class="verdict">{icon(mark)}{word}</span><small>{fit}</small></p>'
    )


def _training(plan: Plan) -> str:
    """'429 steps, 3 epochs'; 'about' where the epochs decide and not all rows were counted."""
    steps, epochs = counted(plan.estimate.steps, "step"), f"{plan.num_train_epochs:g} epoch"
    epochs += "" if plan.num_train_epochs == 1 else "s"
    if plan.max_steps > 0:
        return steps
    about = "" if plan.estimate.is_exact else "about "
    return f"{about}{steps}, {epochs}"


def memory_bar(plan: Plan) -> str:
    """Peak by part against what is free; the outline is what may be used."""
    hardware, estimate = plan.hardware, plan.estimate
    whole = max(hardware.free_gib, estimate.peak_gib) or 1
    segments = "".join(_segment(i, part, whole) for i, part in enumerate(estimate.parts))
    keys = "".join(
        f'<li><i class="part-{i}"></i>{text(_part_name(part))}<b>{gib(part.gib)}</b></li>'
        for i, part in enumerate(estimate.parts)
    )
    verdict = "fits" if estimate.fits else "over"
    line = f"{gib(estimate.peak_gib)} of {gib(hardware.free_gib)} free on {_device(plan)}"
    if _keeps_more(plan):
        line += f"; needs at least {gib(estimate.least_gib)}"
    free = f'<span class="limit" style="left:{100 * hardware.free_gib / whole:.1f}%"></span>'
    word = "Fits" if estimate.fits else "Does not fit"
    mark = icon("done" if estimate.fits else "error")
    return (
        f'<div class="memory {verdict}"><div class="memory-head"><span>Memory at the peak</span>'
        f'<span class="verdict">{mark}{word}</span></div>'
        f'<div class="bar" role="img" aria-label="{text(line)}">{segments}{free}</div>'
        f'<p class="memory-line">{text(line)}</p>'
        f"<details><summary>Where it goes</summary><ul>{keys}</ul></details></div>"
    )


def _keeps_more(plan: Plan) -> bool:
    """Whether it holds more for speed than it needs, as shown."""
    return gib(plan.estimate.peak_gib) != gib(plan.estimate.least_gib)


def _segment(index: int, part: MemoryPart, whole: float) -> str:
    share = 100 * part.gib / whole
    return (
        f'<span class="part-{index}" style="width:{share:.2f}%" title="{text(part.name)}"></span>'
    )


def _part_name(part: MemoryPart) -> str:
    words = part.name[:1].upper() + part.name[1:]
    return f"{words}, given back where memory is short" if part.name == KEPT_FOR_SPEED else words


def _device(plan: Plan) -> str:
    if plan.hardware.device == "cpu":
        return plan.offer.label if plan.offer else "this machine"
    return f"each {plan.hardware.name}" if plan.num_processes > 1 else plan.hardware.name


_NOT_IN_THE_FORM = {
    "num_scored_rows": "Answers scored",
    "step_kind": "Step",
    "step": "Step",
    "cpu_offload": "Base in host memory",
    "stored_weights": "Weights of the base",
    "trained_part": "Trained part of the base",
}


def choices(plan: Plan, labels: dict[str, str]) -> str:
    """Every value that was chosen automatically, with its reason."""
    labels = labels | _NOT_IN_THE_FORM
    items = "".join(
        f"<li><span>{text(labels.get(c.name, c.name))}</span><b>{text(c.value)}</b>"
        f"<em>{text(c.why)}</em></li>"
        for c in plan.choices
    )
    if not items:
        return ""
    title = f"{counted(len(plan.choices), 'value')} chosen for you"
    return f'<details class="choices" open><summary>{title}</summary><ul tabindex="0">{items}</ul></details>'


def command(line: str) -> str:
    """The same job without a browser; page.js copies it."""
    return (
        '<details class="command" open><summary>The same in a terminal</summary>'
        f'<div class="command-line"><code tabindex="0">{text(line)}</code>'
        f'<button type="button" class="copy" data-copy="{text(line)}">{icon("copy")}'
        "<span>Copy</span></button></div></details>"
    )


def publishing(plan: Plan) -> str:
    """What stands in the way of publishing when it is done; '' if nothing does."""
    found = plan.publishing
    return notice("error", found.problem, found.fix) if found and found.problem else ""


def card(
    plan: Plan,
    labels: dict[str, str],
    line: str,
    quick: Plan | None = None,
    changes: Sequence[tuple[Change, str]] = (),
) -> str:
    """`quick`: the same as a quick look, where that is worth offering; `changes`: what would make it fit."""
    parts = (
        summary(plan, quick),
        publishing(plan),
        memory_bar(plan),
        smaller(plan, changes),
        places(plan),
        choices(plan, labels),
    )
    return "".join(parts) + command(line)
