"""Section 1 of "New run": which data, what was found in it, and the buttons that fix it."""

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component
from pydantic import ValidationError

from qlora_space.app.ui.draft import Draft, sources_of
from qlora_space.app.ui.form import (
    CHOSEN,
    LABELS,
    Fields,
    build_field,
    form_values,
    group_of,
)
from qlora_space.app.ui.render import data as render_data
from qlora_space.app.ui.render.html import empty, error_notice, reading, show_more
from qlora_space.app.ui.render.xray import xray
from qlora_space.app.ui.uploads import SUFFIXES, shown_name
from qlora_space.core.errors import RequestError
from qlora_space.core.inspection import Change, Inspection
from qlora_space.core.options import DEMO
from qlora_space.core.request import parse_request
from qlora_space.core.wording import visible_name

_SOURCE_OPTIONS = ("dataset_config", "dataset_split", "eval_split")
_ROWS_COME_FROM = ("dataset_config", "dataset_split", "dataset_revision")
_WAITS_FOR_BASE = "Rows are read with the tokenizer of the base."
_SET_BY_FIXES = ("instruction", "max_length", "drop_truncated", "deduplicate", "eval_fraction")
_SPECIFIC_TO_DATASET = (*_SOURCE_OPTIONS, "dataset_revision", "format", "columns", *_SET_BY_FIXES)


def build_data_section(fields: Fields, search_box: Callable[[], gr.Dropdown]) -> dict[str, Any]:
    """Lay it out; adds its fields to `fields`, returns its other components."""
    shown: dict[str, Any] = {}
    with gr.Row(elem_classes="pick"):
        fields["dataset"] = search_box()
        shown["upload"] = gr.UploadButton(
            "Upload a file",
            file_types=list(SUFFIXES),
            elem_id="upload",
            scale=0,
            min_width=150,
            size="md",
        )
    with gr.Row(elem_classes="options"):
        for name in _SOURCE_OPTIONS:
            fields[name] = gr.Dropdown(
                [(CHOSEN, "")],
                label=LABELS[name],
                value="",
                visible=name != "dataset_config",  # as the demo, which is there first
                allow_custom_value=True,
                elem_id=f"field-{name.replace('_', '-')}",
            )
        fields["format"] = build_field("format", info=None)
    shown["data"] = gr.HTML(
        reading("Reading “demo” …"),
        elem_id="data-facts",
        elem_classes="foldable",
        js_on_load="qlora.data(element, trigger)",
    )
    names = [name for name in LABELS if name not in fields and group_of(name) == "data"]
    shown["options"] = gr.Accordion("Data options", open=False, elem_id="data-options")
    with shown["options"], gr.Row(elem_classes="group"):
        for name in names:
            fields[name] = build_field(name, min_width=220)
    with gr.Accordion("What the model is trained on", open=True, elem_id="xray"):
        shown["xray"] = gr.HTML(
            elem_id="xray-body", elem_classes="foldable", js_on_load="qlora.xray(element)"
        )
    return shown


def apply_change(
    event: gr.EventData, fields: Fields, accordions: dict[str, Component]
) -> dict[Component, Any]:
    """The field that a fix button, a mapping box or the length limit sets. The event is untrusted.

    `accordions`: by group of fields, the one that has to be open for the field to be visible.
    """
    try:
        change = Change.model_validate({"field": event.set, "value": str(event.to)[:10_000]})
    except ValidationError:
        raise RequestError("This button is out of date.", "Reload the page.") from None
    values = form_values(parse_request(_values_of(change)))
    updates: dict[Component, Any] = {
        fields[name]: gr.update(value=values[name]) for name in _values_of(change)
    }
    accordion = accordions.get("" if change.field == "format" else group_of(change.field))
    return updates | ({accordion: gr.update(open=True)} if accordion else {})


def _values_of(change: Change) -> dict[str, str]:
    """'job l4x1' as a place is a job on that machine."""
    if change.field != "place":
        return {change.field: change.value}
    place, _, flavor = change.value.partition(" ")
    return {"place": place, "flavor": flavor}


def choices_of_no_dataset() -> dict[str, Any]:
    """Another dataset has other splits, columns and problems: choices made for the last one are reset."""
    defaults = form_values(parse_request({}))
    return {name: defaults[name] for name in _SPECIFIC_TO_DATASET}


def reads_other_rows(values: Mapping[str, Any], before: Draft) -> bool:
    """Whether the rows that are shown belong to another source than the one that the form names."""
    if before.sources != sources_of(values) or before.request is None:
        return True
    known = form_values(before.request)
    return any((values[name] or "") != known[name] for name in _ROWS_COME_FROM)


def reading_updates(
    values: Mapping[str, Any], shown: dict[str, Any], fields: Fields
) -> dict[Component, Any]:
    """While rows are read, none are shown: the last ones belong to another source."""
    name = shown_name(sources_of(values)[0])
    is_on_hub = "/" in name and name != DEMO
    words = f"Searching the Hub for “{name}” …" if is_on_hub else f"Reading “{name}” …"
    return _nothing_read(shown, fields) | {shown["data"]: reading(words)}


def data_updates(draft: Draft, shown: dict[str, Any], fields: Fields) -> dict[Component, Any]:
    """What is shown of the data now: the inspection, or the error in its place."""
    found = draft.inspection
    if found is None:
        error = draft.data_error
        markup = error_notice(error) if error else empty("Nothing to show yet", _WAITS_FOR_BASE)
        return _nothing_read(shown, fields) | {shown["data"]: markup}
    return {
        shown["data"]: _inspection_markup(found),
        shown["xray"]: xray(found.samples, found.packed, found.max_length),
        fields["dataset_config"]: _choices(found.configs, found.dataset.config),
        fields["dataset_split"]: _choices(found.splits, found.dataset.split),
        fields["eval_split"]: _choices(found.splits, found.eval_split),
        fields["format"]: gr.update(visible=True),
    }


def _nothing_read(shown: dict[str, Any], fields: Fields) -> dict[Component, Any]:
    names = (*_SOURCE_OPTIONS, "format")
    hidden: dict[Component, Any] = {fields[name]: gr.update(visible=False) for name in names}
    return hidden | {shown["xray"]: xray(())}


def _inspection_markup(found: Inspection) -> str:
    rows = f"{render_data.preview(found)}{render_data.lengths(found)}"
    return "".join(
        (
            f'<div class="line">{render_data.dataset_facts(found)}{show_more("the rows")}</div>',
            render_data.format_line(found),
            render_data.findings(found.problems),
            f'<div class="rows-and-lengths">{rows}</div>',
        )
    )


def _choices(options: tuple[str, ...], used: str) -> dict[str, Any]:
    """Visible only where there is a choice; the empty choice names what is used."""
    default = (f"{visible_name(used)} (default)" if used else CHOSEN, "")
    named = ((visible_name(option), option) for option in options)
    return gr.update(choices=[default, *named], visible=len(options) > 1)
