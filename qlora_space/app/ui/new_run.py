"""The page "New run": three numbered sections, and a card that shows what will happen."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.cli.flags import train_command
from qlora_space.app.copies import may_keep_copies
from qlora_space.app.ui.boundary import for_visitor, shows_errors
from qlora_space.app.ui.data_section import (
    apply_change,
    build_data_section,
    choices_of_no_dataset,
    data_updates,
    reading_updates,
    reads_other_rows,
)
from qlora_space.app.ui.draft import (
    CHECKING,
    Draft,
    examine,
    is_inspected,
    readiness,
    request_from,
    sources_of,
)
from qlora_space.app.ui.form import (
    GROUPS,
    LABELS,
    Fields,
    FormField,
    build_field,
    build_search_box,
    form_values,
    group_of,
    placeholders,
    wire_repo_names,
)
from qlora_space.app.ui.published_box import PublishedBox, build_published_box
from qlora_space.app.ui.render import changes as render_changes
from qlora_space.app.ui.render import data as render_data
from qlora_space.app.ui.render import low_bit as render_low_bit
from qlora_space.app.ui.render import plan as render_plan
from qlora_space.app.ui.render.html import empty, error_notice, reading
from qlora_space.app.ui.uploads import form_value, keep_upload, shown_name
from qlora_space.core.errors import RunError
from qlora_space.core.options import DEMO, Bits
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import count
from qlora_space.hub import ModelHit, expiry_warning
from qlora_space.plan import Plan, ladder
from qlora_space.runs import Quality

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_DEMO_CHOICE = [("demo: the embedded task", DEMO)]
_DEMO_BASE = [("demo: the embedded small model", DEMO)]
_PRESETS = [("Quick look", "quick"), ("Balanced", "balanced"), ("Thorough", "thorough")]
_BITS_HELP = (
    "Below each: memory needed, and how often its next word is that of 16 bits (≈: as on another base). At 3 and 2 it "
    "is measured first, and training stops if the base is too damaged."
)
_BITS: list[tuple[str, int]] = [(f"{bits} bit", bits) for bits in get_args(Bits)]


@dataclass
class Latest:
    """The last check that a visitor's form asked for: what an earlier one finds is out of date."""

    check: object = None


@dataclass(frozen=True)
class NewRun:
    """The page, with what the rest of the app uses of it."""

    column: gr.Column
    fields: Fields
    draft: gr.State
    keeps_copy: gr.Checkbox
    published: PublishedBox
    check_on: Callable[[Callable], Any]  # an event's method, page.load or click(...).then

    def filled(self, actions: Actions, request: TrainingRequest) -> dict[Component, Any]:
        """The form as it was for that request."""
        values = form_values(request)
        dataset = form_value(actions, request.dataset)
        known = {"dataset": (dataset, _DEMO_CHOICE), "base": (request.base, _DEMO_BASE)}
        updates: dict[Component, Any] = {
            field: gr.update(value=values[name]) for name, field in self.fields.items()
        }
        for name, (value, fixed) in known.items():
            more = [] if value == DEMO else [(shown_name(value), value)]
            updates[self.fields[name]] = gr.update(choices=[*fixed, *more], value=value)
        return updates | {self.draft: Draft((dataset, request.base))}


def build_new_run(
    actions: Actions, address: gr.Textbox, busy: gr.State, origin: gr.State
) -> NewRun:
    """Lay out the page and wire it. `busy` holds the name of the run that trains now, `origin` the id of
    the run whose settings fill the form."""
    fields: Fields = {}
    draft, latest = gr.State(Draft()), gr.State(Latest())
    with gr.Column(elem_id="new-run") as page, gr.Row(elem_id="new-run-columns"):
        with gr.Column(scale=7, elem_id="form", min_width=320):
            shown = _data_section(actions, fields)
            with gr.Row(elem_id="base-and-training"):
                shown |= _base_section(actions, fields) | _training_section(fields)
            published = build_published_box()
        with gr.Column(scale=3, elem_id="card", min_width=300):
            keeps_copy = _card(shown)
    fields["num_processes"].visible = actions.hardware().num_gpus > 1
    start, check = shown["start"], _check(actions, fields, shown, (draft, latest, origin))
    inputs = {draft, latest, origin, *fields.values()}
    outputs = [draft, *shown.values(), *fields.values()]

    def check_on(event: Callable, **options: Any) -> Any:
        return event(check, inputs, outputs, concurrency_limit=4, **options, **_PRIVATE)

    _wire_upload(actions, fields, shown["upload"])
    wire_repo_names(actions, fields)
    _wire_fixes(fields, shown, check_on)
    sources = {name: fields[name] for name in ("dataset", "base")}
    options = [field for name, field in fields.items() if name not in sources]
    triggers = [trigger for field in options for trigger in _triggers(field)]
    check_on(functools.partial(gr.on, triggers), trigger_mode="always_last")
    # At once: the rows of the last source must not stand under the name of the next one.
    changes = [field.change for field in sources.values()]
    check_on(functools.partial(gr.on, changes), trigger_mode="multiple")

    @for_visitor(actions)
    def start_run(acting: Actions, values: dict[Component, Any]) -> dict[Component, Any]:
        request = request_from(acting, _by_name(fields, values))
        keeps = bool(values[keeps_copy]) and may_keep_copies(acting)
        run = acting.start(request, values[origin], keeps_copy=keeps)
        uses = ("the copy on the Hub",) * bool(request.mirror_to or keeps)
        uses += ("publishing at its end",) * bool(request.hub_model_id)
        seconds = run.plan().estimate.seconds
        # A job ends before the sign-in does, and its plan says so.
        if request.place == "here" and (
            ends := expiry_warning(acting.visitor.expires_at, seconds, time.time(), uses)
        ):
            gr.Warning(ends)
        return {address: f"run={run.id}&view=run"}

    start.click(
        start_run,
        {*inputs, keeps_copy},
        address,
        trigger_mode="once",
        concurrency_limit=4,
        **_PRIVATE,
    )
    busy.change(_start_button, [draft, busy], start, concurrency_limit=None, **_PRIVATE)
    return NewRun(page, fields, draft, keeps_copy, published, check_on)


def _card(shown: dict[str, Any]) -> gr.Checkbox:
    """Whether a copy is kept; the others go into `shown`."""
    gr.HTML('<h2 class="card-title">What will happen</h2>')
    shown["fork"] = gr.HTML(elem_id="card-fork")
    shown["card"] = gr.HTML(
        _checking_card(), elem_id="card-body", js_on_load="qlora.fixes(element, trigger)"
    )
    keeps_copy = gr.Checkbox(
        label="Keep a private copy on my account",
        visible=False,
        elem_id="keeps-copy",
    )
    with gr.Column(elem_id="start-bar"):  # on a phone it stays at the foot of the window
        shown["glance"] = gr.HTML(elem_id="glance")
        shown["start"] = gr.Button(CHECKING, variant="primary", interactive=False, elem_id="start")
    return keeps_copy


def _check(
    actions: Actions,
    fields: Fields,
    shown: dict[str, Any],
    states: tuple[gr.State, gr.State, gr.State],
) -> Callable:
    """The handler of every change of the form: inspect and plan what it asks for, and show the result."""
    draft, latest, origin = states

    @for_visitor(actions)
    def check(acting: Actions, values: dict[Component, Any]) -> Iterator[dict[Component, Any]]:
        mine = values[latest].check = object()
        form, before = _by_name(fields, values), values[draft]
        reset = _reset_choices(form, before)
        form |= reset
        set_back = {fields[name]: gr.update(value=value) for name, value in reset.items()}
        if not is_inspected(acting, form, before):
            yield set_back | _waiting(form, before, shown, fields, draft)
        now = examine(acting, form, before)
        if values[latest].check is not mine:
            yield {shown["start"]: gr.skip()}
            return
        yield (
            set_back
            | _rendered(now, shown, fields)
            | {
                draft: now,
                shown["start"]: _start_button(now, training_now(acting)),
                shown["fork"]: _fork(acting, values[origin], now.plan),
                shown["low_bit"]: _low_bit_group(before.plan, now.plan),
            }
        )

    return check


def _reset_choices(form: dict[str, Any], before: Draft) -> dict[str, Any]:
    """Choices made for the last dataset, if the form names another one now."""
    last, now = before.sources[0], sources_of(form)[0]
    return choices_of_no_dataset() if last and last != now else {}


def _waiting(
    form: dict[str, Any], before: Draft, shown: dict[str, Any], fields: Fields, draft: gr.State
) -> dict[Component, Any]:
    """What is shown while the data is read."""
    updates: dict[Component, Any] = {shown["start"]: gr.update(value=CHECKING, interactive=False)}
    is_first = not before.sources[0]  # nothing is shown yet
    if is_first or not reads_other_rows(form, before):
        return updates
    sources = sources_of(form)
    updates |= reading_updates(form, shown, fields) | _no_plan(shown, fields, _checking_card())
    if before.sources[1] != sources[1]:
        updates[shown["base"]] = reading(f"Reading “{shown_name(sources[1])}” …")
    return updates | {draft: Draft(sources)}


def _by_name(fields: Fields, values: dict[Component, Any]) -> dict[str, Any]:
    return {name: values[field] for name, field in fields.items()}


def _start_button(now: Draft, busy_name: str) -> dict[str, Any]:
    label, is_ready = readiness(now, busy_name)
    return gr.update(value=label, interactive=is_ready)


def _wire_upload(actions: Actions, fields: Fields, upload: gr.UploadButton) -> None:
    @for_visitor(actions)
    def keep(acting: Actions, file: str) -> dict[str, Any]:
        kept = keep_upload(acting, Path(file))
        return gr.update(choices=[*_DEMO_CHOICE, (f"{shown_name(kept)} (yours)", kept)], value=kept)

    upload.upload(keep, upload, fields["dataset"], **_PRIVATE)


def _wire_fixes(fields: Fields, shown: dict[str, Any], check_on: Callable) -> None:
    """The fix buttons, the mapping boxes and the length limit among the findings in the data; the card's button."""
    options, advanced = shown["options"], shown["advanced"]

    @shows_errors
    def apply(event: gr.EventData) -> dict[Component, Any]:
        return apply_change(event, fields, {"data": options, "optimisation": advanced})

    for place in (shown["data"], shown["card"]):
        check_on(place.click(apply, None, [*fields.values(), options, advanced], **_PRIVATE).then)


def _fork(actions: Actions, origin_id: str, plan: Plan | None) -> str:
    """What differs so far from the run whose settings fill the form."""
    if not origin_id or plan is None:
        return ""
    try:
        run = actions.run(origin_id)
    except RunError:  # deleted meanwhile
        return ""
    return render_changes.fork(run.name(), run.id, run.plan(), plan)


def training_now(actions: Actions) -> str:
    """The name of the run that trains on this machine; '' if none does."""
    return actions.busy_name()


def _triggers(field: FormField) -> list[Any]:
    """A text box counts once it is left or submitted, everything else at once."""
    if isinstance(field, gr.Textbox):
        return [field.blur, field.submit]
    return [field.change]


def _section(number: int, title: str) -> None:
    gr.HTML(
        f'<div class="section-title"><span class="number">{number}</span><h2>{title}</h2></div>'
    )


def _data_section(actions: Actions, fields: Fields) -> dict[str, Any]:
    with gr.Column(elem_classes="sheet", elem_id="section-data"):
        _section(1, "Data")
        return build_data_section(
            fields,
            lambda: build_search_box(
                "dataset",
                _DEMO_CHOICE,
                actions,
                lambda acting, typed: [(id, id) for id in acting.search_datasets(typed)],
            ),
        )


def _in_words(hit: ModelHit) -> str:
    """'Qwen/Qwen3-30B-A3B (31B, mixture of experts)'; of most the id alone."""
    size = count(hit.parameters) if hit.parameters else ""
    return f"{hit.id} ({', '.join(filter(None, (size, hit.kind)))})" if hit.kind else hit.id


def _base_section(actions: Actions, fields: Fields) -> dict[str, Any]:
    with gr.Column(elem_classes="sheet", elem_id="section-base", min_width=280):
        _section(2, "Base")
        fields["base"] = build_search_box(
            "base",
            _DEMO_BASE,
            actions,
            lambda acting, typed: [(_in_words(hit), hit.id) for hit in acting.search_bases(typed)],
        )
        facts = gr.HTML(elem_id="base-facts")
        fields["bits"] = gr.Radio(
            _BITS,
            value=4,
            label=LABELS["bits"],
            info=_BITS_HELP,
            elem_id="field-bits",
            elem_classes="segments",
        )
        low_bit = gr.Accordion("Low-bit options", open=False, visible=False, elem_id="low-bit")
        with low_bit, gr.Row(elem_classes="group"):
            for name in ("init", "heal", "group_size", "mean_bits", "base_gib", "calibrated"):
                fields[name] = build_field(name, min_width=220)
        bit_widths = gr.HTML(elem_id="bit-widths")
    return {"base": facts, "low_bit": low_bit, "bit_widths": bit_widths}


def _training_section(fields: Fields) -> dict[str, Any]:
    with gr.Column(elem_classes="sheet", elem_id="section-training", min_width=200):
        _section(3, "Training")
        fields["preset"] = gr.Radio(
            _PRESETS,
            value="balanced",
            label=LABELS["preset"],
            info="Quick: minutes. Thorough: more passes, a higher rank.",
            elem_id="field-preset",
            elem_classes="segments",
        )
        with gr.Accordion("Advanced", open=False, elem_id="advanced") as advanced:
            for group, title in GROUPS.items():  # those of the data are in its section
                _group(fields, group, title)
    return {"advanced": advanced}


def _group(fields: Fields, group: str, title: str) -> None:
    names = [n for n in LABELS if n not in fields and group_of(n) == group]
    if not names:
        return
    gr.HTML(f'<h3 class="group-title">{title}</h3>')
    with gr.Row(elem_classes="group"):
        for name in names:
            fields[name] = build_field(name, min_width=220)


def _rendered(draft: Draft, shown: dict[str, Any], fields: Fields) -> dict[Component, Any]:
    updates = data_updates(draft, shown, fields) | {shown["base"]: _base(draft)}
    if draft.plan is None or draft.request is None:
        card = error_notice(draft.settings_error) if draft.settings_error else ""
        return updates | _no_plan(shown, fields, card or empty("No plan yet", readiness(draft)[0]))
    plan = draft.plan
    updates[shown["card"]] = render_plan.card(
        plan, LABELS, _command(draft.request), draft.quick, ladder(draft.request, plan)
    )
    updates[shown["glance"]] = render_plan.glance(plan)
    mixed = f"Replaced by mixed bits: {plan.mean_bits:.3g} on average, chosen below."
    updates[fields["bits"]] = gr.update(
        choices=_bits_with_costs(draft.request, plan, draft.quality),
        info=mixed if plan.mean_bits else _BITS_HELP,
    )
    updates[shown["bit_widths"]] = render_low_bit.bit_widths(draft.request, plan, draft.quality)
    return updates | placeholders(fields, plan)


def _base(draft: Draft) -> str:
    facts = render_data.base_facts(draft.base) if draft.base else ""
    return facts + (error_notice(draft.base_error) if draft.base_error else "")


def _no_plan(shown: dict[str, Any], fields: Fields, card: str) -> dict[Component, Any]:
    """Without the figures of the last plan."""
    bits = gr.update(choices=[(f"{label}\n–", bits) for label, bits in _BITS], info=_BITS_HELP)
    nothing = {shown["glance"]: "", shown["bit_widths"]: ""}
    return {shown["card"]: card, fields["bits"]: bits} | nothing


def _command(request: TrainingRequest) -> str:
    """The same job in a terminal; an upload goes by the name that its owner knows."""
    return train_command(request.model_copy(update={"dataset": shown_name(request.dataset)}))


def _low_bit_group(before: Plan | None, now: Plan | None) -> dict[str, Any]:
    """Opens by itself when few bits are chosen, and never closes by itself."""
    if now is None:
        return gr.skip()
    if now.is_low_bit and not (before and before.is_low_bit):
        return gr.update(visible=True, open=True)
    return gr.update(visible=now.bits <= 4)


def _bits_with_costs(
    request: TrainingRequest, plan: Plan, known: Sequence[Quality]
) -> list[tuple[str, int]]:
    """What the plan needs at each width, which is on the card once that width is chosen, and the base's quality."""
    needed = render_low_bit.needed_gib(request, plan)
    words = render_low_bit.same_words(plan, known)
    return [
        (f"{label}\n{render_low_bit.shown_gib(needed[bits])}\n{words[bits]}", bits)
        for label, bits in _BITS
    ]


def _checking_card() -> str:
    return empty("Working out the plan …", "Rows, memory, time and every chosen value appear here.")
