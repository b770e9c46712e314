"""Sample answers of a run to fixed prompts, over time."""

from collections.abc import Collection

from qlora_space.app.ui.render.html import empty, icon, text
from qlora_space.core.events import Sample
from qlora_space.core.wording import significant
from qlora_space.runs import RunView

# Which step's answers are shown; stream.js sets its range.
STEP_SLIDER = (
    '<label hidden><span>Step</span><input type="range" min="0" max="1" value="0" aria-label="Step">'
    "<output></output></label>"
)


def sample_steps(view: RunView) -> list[int]:
    return sorted({sample.step for sample in view.samples})


def _by_step(view: RunView) -> dict[int, dict[str, Sample]]:
    """The newest answer to each prompt, by step."""
    answers: dict[int, dict[str, Sample]] = {}
    for sample in view.samples:
        answers.setdefault(sample.step, {})[sample.prompt] = sample
    return answers


def samples(view: RunView, step: int) -> str:
    """The answers at the last sampled step up to `step`."""
    steps = sample_steps(view)
    if not steps:
        hint = "Held-out prompts are answered at every evaluation."
        return empty("No samples yet", hint)
    shown = max((s for s in steps if s <= step), default=steps[0])
    cards = "".join(_sample(s) for s in _by_step(view)[shown].values())
    return f'<h4 class="samples-at">{_at_step(shown)}</h4><div class="samples">{cards}</div>'


def timeline(view: RunView, step: int) -> str:
    """One button per sampled step: how many answers were as expected, and the held-out loss."""
    steps = sample_steps(view)
    if len(steps) < 2:
        return ""
    shown = max((s for s in steps if s <= step), default=steps[0])
    losses, answers = dict(view.series("eval_loss")), _by_step(view)
    items = "".join(
        f'<li><button type="button" data-pick="{at}"{_current(at == shown)}>'
        f"<b>{_at_step(at)}</b><span>{_num_right(answers[at].values())}</span>"
        f"<small>{f'held-out {significant(losses[at])}' if at in losses else ''}</small></button></li>"
        for at in steps
    )
    return f'<ol class="timeline" aria-label="Answers over time">{items}</ol>'


def _at_step(step: int) -> str:
    return f"After step {step:,}" if step else "Before training"


def _current(is_shown: bool) -> str:
    return ' aria-current="step"' if is_shown else ""


def _num_right(answers: Collection[Sample]) -> str:
    if not any(s.expected for s in answers):
        return ""
    return f"{sum(map(_is_right, answers))} of {len(answers)} match"


def _sample(sample: Sample) -> str:
    is_right = _is_right(sample)
    mark = f'<span class="right">{icon("done")}as expected</span>' if is_right else ""
    expected = "" if is_right or not sample.expected else _labelled("Expected", sample.expected)
    return (
        f'<article class="sample">{_labelled("Prompt", sample.prompt)}'
        f"{_labelled('Answer', sample.text, mark)}{expected}</article>"
    )


def _is_right(sample: Sample) -> bool:
    return bool(sample.expected) and sample.text.strip() == sample.expected.strip()


def _labelled(who: str, what: str, mark: str = "") -> str:
    return (
        f'<div class="labelled"><span>{who} {mark}</span><p>{text(what) or "(nothing)"}</p></div>'
    )
