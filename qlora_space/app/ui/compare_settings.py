"""What is compared and how it answers: checkpoint, strength of the adapter, sampling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.comparing import on_the_same_base
from qlora_space.core.comparison import MOST_ADAPTERS, CompareOptions, Sampling
from qlora_space.core.parsing import parse_values
from qlora_space.core.wording import age
from qlora_space.runs import RunFolder

NEWEST = "newest"
_MOST_OTHER_RUNS = 50


@dataclass(frozen=True)
class CompareSettings:
    step: gr.Dropdown
    strength: gr.Slider
    others: gr.Dropdown
    sampling: dict[str, Component]

    @property
    def fields(self) -> list[Component]:
        return [self.step, self.strength, self.others, *self.sampling.values()]

    def options(self, values: Sequence[Any]) -> CompareOptions:
        """From the values of `fields`. Raises RequestError."""
        step, strength, others, *rest = values
        sampling = dict(zip(self.sampling, rest, strict=True))
        chosen = {"step": None if step in (NEWEST, None) else step, "strength": strength}
        chosen["others"] = [name.strip() for name in others or () if name.strip()]
        return parse_values(CompareOptions, {**chosen, "sampling": sampling})

    def opened(self, acting: Actions, run: RunFolder, options: CompareOptions) -> tuple[Any, ...]:
        """Values of `fields` as they were for a comparison, with the checkpoints that the run keeps."""
        choices = step_choices(acting, run)
        step = NEWEST if options.step is None else str(options.step)
        known = step if step in [value for _, value in choices] else NEWEST
        sampling = options.sampling.model_dump()
        return (
            gr.update(choices=choices, value=known, interactive=len(choices) > 1),
            options.strength,
            gr.update(choices=other_choices(acting, run), value=list(options.others)),
            *(sampling[name] for name in self.sampling),
        )


def step_choices(acting: Actions, run: RunFolder) -> list[tuple[str, str]]:
    """(label, value): the adapter that the run made, and every checkpoint that it keeps, newest first."""
    report, view = run.report(), acting.view(run)
    made = report.adapter_step if report else None
    after = f", after step {made}" if made is not None else ""
    newest = f"The run's adapter{after}" if run.has_adapter else "Newest checkpoint"
    losses = dict(view.series("eval_loss"))

    def label(step: int) -> str:
        loss = losses.get(step)
        return f"Step {step}" + (f", held-out loss {loss:.3f}" if loss is not None else "")

    steps = reversed(run.checkpoint_steps())
    return [(newest, NEWEST), *((label(step), str(step)) for step in steps)]


def other_choices(acting: Actions, run: RunFolder) -> list[tuple[str, str]]:
    """(label, id) of runs on the same base."""
    found = on_the_same_base(acting, run)[:_MOST_OTHER_RUNS]
    ages = [acting.view(other).started_at for other in found]
    return [(f"{o.name()}, {age(at)}", o.id) for o, at in zip(found, ages, strict=True)]


def build_compare_settings() -> CompareSettings:
    strength = CompareOptions.model_fields["strength"]
    with gr.Row(elem_id="compare-settings"):
        step = gr.Dropdown(
            [("The run's adapter", NEWEST)],
            value=NEWEST,
            label="Adapter",
            info="The one that the run made, or a checkpoint that it keeps.",
            elem_id="compare-step",
            min_width=240,
        )
        slider = gr.Slider(
            0,
            2,
            value=1,
            step=0.05,
            label="Strength",
            info=strength.description,
            elem_id="strength",
            min_width=240,
        )
        others = gr.Dropdown(
            [],
            multiselect=True,
            max_choices=MOST_ADAPTERS - 1,
            allow_custom_value=True,
            label="Compare with",
            info="Up to three more: runs on the same base, or IDs of adapters on the Hub.",
            elem_id="compare-others",
            min_width=240,
        )
    with gr.Accordion("Sampling", open=False, elem_id="sampling"), gr.Row(elem_classes="group"):
        sampling = {name: _sampling_field(name) for name in Sampling.model_fields}
    return CompareSettings(step, slider, others, sampling)


def _sampling_field(name: str) -> Component:
    known = Sampling.model_fields[name]
    low = next((m.ge for m in known.metadata if hasattr(m, "ge")), 0.01)
    high = next((m.le for m in known.metadata if hasattr(m, "le")), None)
    label, info = name.replace("_", " ").capitalize(), known.description
    common: dict[str, Any] = {
        "value": known.default,
        "label": label,
        "info": info,
        "min_width": 200,
    }
    if known.annotation is int:
        return gr.Number(minimum=low, maximum=high, precision=0, **common)
    return gr.Slider(low, high or 1, step=0.01, **common)
