"""Section 1 of "New run": which data, what was found in it, and the buttons that mend it."""

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.components import Component
from pydantic import ValidationError

from qlora_space.app.ui.boundary import shows_errors
from qlora_space.app.ui.draft import Draft
from qlora_space.app.ui.form import CHOSEN, LABELS, build_field, form_values, group_of
from qlora_space.app.ui.render import data as render_data
from qlora_space.app.ui.render.html import empty, trouble
from qlora_space.app.ui.render.xray import xray
from qlora_space.app.ui.uploads import SUFFIXES
from qlora_space.core.errors import DatasetError, RequestError
from qlora_space.core.inspection import Change, Inspection
from qlora_space.core.request import TrainingRequest, parse_request

_PICKED = ("dataset_config", "dataset_split", "eval_split")
_ANSWERS_TO_FINDINGS = ("max_length", "drop_truncated", "deduplicate", "eval_fraction")
_OF_ONE_DATASET = (*_PICKED, "dataset_revision", "format", "columns", *_ANSWERS_TO_FINDINGS)


def build_data_section(fields: dict[str, Component], build_search: Callable) -> dict[str, Any]:
    """Lay it out; adds its fields to `fields`, returns what else is on it."""
    shown: dict[str, Any] = {}
    with gr.Row(elem_classes="pick"):
        fields["dataset"] = build_search()
        shown["upload"] = gr.UploadButton(
            "Upload a file",
            file_types=list(SUFFIXES),
            elem_id="upload",
            scale=0,
            min_width=150,
            size="md",
        )
    with gr.Row(elem_classes="options"):
        for name in _PICKED:
            fields[name] = gr.Dropdown(
                [(CHOSEN, "")],
                label=LABELS[name],
                info=TrainingRequest.model_fields[name].description,
                value="",
                visible=False,
                allow_custom_value=True,
                elem_id=f"field-{name.replace('_', '-')}",
            )
        fields["format"] = build_field("format", visible=False)
    shown["data"] = gr.HTML(
        empty("Looking at the data …"),
        elem_id="data-facts",
        js_on_load="qlora.data(element, trigger)",
    )
    names = [name for name in LABELS if name not in fields and group_of(name) == "data"]
    shown["options"] = gr.Accordion("Data options", open=False, elem_id="data-options")
    with shown["options"], gr.Row(elem_classes="group"):
        for name in names:
            fields[name] = build_field(name, min_width=220)
    with gr.Accordion("What the model is trained on", open=True, elem_id="xray"):
        shown["xray"] = gr.HTML(elem_id="xray-body", js_on_load="qlora.xray(element)")
    return shown


def set_by_click(
    event: gr.EventData, fields: dict[str, Component], accordions: dict[str, Component]
) -> dict[Component, Any]:
    """The form with what a button, a box or the line of the lengths asks for. The event is untrusted.

    `accordions`: by group of fields, what has to be open for its field to be seen.
    """
    try:
        change = Change.model_validate({"field": event.set, "value": str(event.to)[:10_000]})
    except ValidationError:
        raise RequestError("This button is out of date.", "Reload the page.") from None
    value = form_values(parse_request({change.field: change.value}))[change.field]
    updates = {fields[change.field]: gr.update(value=value)}
    accordion = accordions.get("" if change.field == "format" else group_of(change.field))
    return updates | ({accordion: gr.update(open=True)} if accordion else {})


def forget_choices_on(event: Callable, fields: dict[str, Component], **options: Any) -> Any:
    """Another dataset has other splits, columns and faults: what was chosen for the last one goes."""
    chosen = [fields[name] for name in _OF_ONE_DATASET]
    unchosen = form_values(parse_request({}))
    values = [unchosen[name] for name in _OF_ONE_DATASET]
    return event(shows_errors(lambda: values), None, chosen, **options)


def data_updates(
    draft: Draft, shown: dict[str, Any], fields: dict[str, Component]
) -> dict[Component, Any]:
    """What is shown of the data now."""
    found = draft.inspection
    if found is None:
        is_data = isinstance(draft.trouble, DatasetError)
        words = trouble(draft.trouble) if is_data else empty("Nothing to show yet")
        return {shown["data"]: words, shown["xray"]: ""}
    return {
        shown["data"]: _body(found),
        shown["xray"]: xray(found.samples, found.packed, found.max_length),
        fields["dataset_config"]: _among(found.configs, found.dataset.config),
        fields["dataset_split"]: _among(found.splits, found.dataset.split),
        fields["eval_split"]: _among(found.splits, found.eval_split),
        fields["format"]: gr.update(visible=True),
    }


def _body(found: Inspection) -> str:
    return "".join(
        (
            render_data.dataset_facts(found),
            render_data.format_line(found),
            render_data.findings(found.problems),
            render_data.preview(found),
            render_data.lengths(found),
        )
    )


def _among(options: tuple[str, ...], used: str) -> dict[str, Any]:
    """Offered only where there is a choice; nothing chosen says what is used."""
    default = (f"{used} (default)" if used else CHOSEN, "")
    return gr.update(choices=[default, *options], visible=len(options) > 1)
