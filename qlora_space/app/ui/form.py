"""The form: one component for every field of TrainingRequest, made from the field itself.

Default, help text, choices and limits come from the request; nothing is written twice. The help text names
the limits and the request checks them, so that a wrong value gets the request's own sentence.
"""

import types
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.uploads import shown_name
from qlora_space.core.options import DEMO, Format, Score
from qlora_space.core.parsing import written_columns
from qlora_space.core.request import TrainingRequest
from qlora_space.core.scoring import SCORE_NAMES
from qlora_space.core.targets import ALL_LINEAR, ATTENTION, MLP
from qlora_space.core.wording import visible, visible_name
from qlora_space.hub import suggested_repos
from qlora_space.plan import Plan

FormField = gr.Textbox | gr.Dropdown | gr.Checkbox | gr.Number | gr.Radio
Fields = dict[str, FormField]
CHOSEN = "Chosen for you"
# Fields where empty means off, not "choose for me".
_OFF = {
    "mirror_to": "Nowhere",
    "adapter": "A new one",
    "mean_bits": "Not mixed",
    "base_gib": "No limit",
}
FORMATS = {
    Format.MESSAGES: "Chat messages",
    Format.SHAREGPT: "ShareGPT conversations",
    Format.ALPACA: "Alpaca instructions",
    Format.PREFERENCE: "Preferences (chosen and rejected)",
    Format.KTO: "Wanted and unwanted answers (KTO)",
    Format.PROMPT_COMPLETION: "Prompt and completion",
    Format.TEXT: "Plain text",
}
GROUPS = {
    "place": "Where it runs",
    "lora": "LoRA",
    "optimisation": "Optimisation",
    "data": "Data",
    "evaluation": "Evaluation",
    "checkpoints": "Checkpoints and name",
    "publishing": "Publishing",
    "base": "Base",
    "low_bit": "Low bits",
}
# Of fields that take any text.
_SUGGESTED = {
    "target_modules": [
        ("All linear layers", ALL_LINEAR),
        ("Attention only", ATTENTION),
        ("MLP only", MLP),
    ],
}
_NOWHERE = ("Nowhere", "")
_LABELS = {
    "adapter": "Go on from an adapter",
    "r": "Rank (r)",
    "expert_r": "Rank on experts",
    "lora_alpha": "Alpha",
    "lora_dropout": "Dropout",
    "target_modules": "Layers",
    "use_rslora": "rsLoRA",
    "use_dora": "DoRA",
    "num_train_epochs": "Epochs",
    "max_steps": "Step limit",
    "per_device_train_batch_size": "Rows at once",
    "gradient_accumulation_steps": "Batches per update",
    "num_processes": "GPUs",
    "lr_scheduler_type": "Learning rate schedule",
    "warmup_steps": "Warm-up",
    "max_grad_norm": "Largest update (gradient norm)",
    "optim": "Optimizer",
    "fp8": "Multiply in FP8",
    "assistant_only_loss": "Learn answers only",
    "max_length": "Longest example",
    "max_rows": "Row limit",
    "text_overlap_tokens": "Overlap of text pieces",
    "drop_truncated": "Leave out examples that would be cut",
    "deduplicate": "Train on each row once",
    "columns": "Column mapping",
    "instruction": "Instruction before each prompt",
    "eval_steps": "Steps between evaluations",
    "eval_share": "Share of time for evaluation",
    "score": "Answers are scored by",
    "forgetting": "Ask general questions",
    "eval_split": "Evaluation split",
    "eval_fraction": "Share held out",
    "save_steps": "Steps between checkpoints",
    "save_seconds": "Seconds between checkpoints",
    "mirror_to": "Mirror to private repository",
    "num_samples": "Sample prompts",
    "dataset_config": "Configuration",
    "dataset_split": "Split",
    "name": "Name of the run",
    "hub_model_id": "Publish when done, to",
    "hub_private_repo": "Keep that repository private",
    "place": "Runs on",
    "flavor": "Machine of a job",
    "max_usd": "Most dollars of a job",
    "bits": "Bits per weight",
    "init": "Adapter init",
    "heal": "Heal before training",
    "group_size": "Weights per scale",
    "mean_bits": "Mixed bits, on average",
    "base_gib": "Packed base of at most, GiB",
    "calibrated": "Calibrated quantization",
    "preset": "How thorough",
}
LABELS = {
    name: _LABELS.get(name, name.replace("_", " ").capitalize())
    for name in TrainingRequest.model_fields
}


def group_of(name: str) -> str:
    """The group that the request gives the field."""
    extra = TrainingRequest.model_fields[name].json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else ""


def build_field(name: str, **layout: Any) -> FormField:
    """The component of one field; `layout` overrides how it is displayed."""
    field = TrainingRequest.model_fields[name]
    kind, is_optional = _kind(field.annotation)
    common: dict[str, Any] = {
        "label": LABELS[name],
        "info": _help(name),
        "elem_id": f"field-{name.replace('_', '-')}",
        "value": field.default,
    } | layout
    if name in _SUGGESTED:
        return gr.Dropdown(_SUGGESTED[name], allow_custom_value=True, **common)
    if name == "hub_model_id":  # names are suggested when it is opened
        common["value"] = common["value"] or ""
        return gr.Dropdown([_NOWHERE], allow_custom_value=True, **common)
    options = _options(kind)
    if options or (kind is bool and is_optional):
        return _choice(options or [("On", "on"), ("Off", "off")], is_optional, common)
    if kind is bool:
        return gr.Checkbox(**common)
    if kind is int and not is_optional:
        return gr.Number(precision=0, **common)
    if kind is float and not is_optional:
        return gr.Number(step=0.0001, **common)
    # gr.Number 6.31 turns None into 0 in the browser, so "choose for me" needs a box for text.
    return gr.Textbox(placeholder=CHOSEN if is_optional else None, max_lines=1, **common)


def build_search_box(
    name: str,
    fixed: list[tuple[str, str]],
    actions: Actions,
    search: Callable[[Actions, str], list[tuple[str, str]]],
) -> gr.Dropdown:
    """A box that suggests ids from the Hub while one types, below the `fixed` choices, and takes any value. What is
    found comes as (words, id).

    page.js sends a search only when typing pauses.
    """
    box = gr.Dropdown(
        fixed,
        value=DEMO,
        allow_custom_value=True,
        label=f"{LABELS[name]} (search the Hub or paste an ID)",
        elem_id=f"field-{name}",
        scale=1,
    )

    @for_visitor(actions)
    def suggest(acting: Actions, key: gr.KeyUpData) -> dict[str, Any]:
        typed = key.input_value
        found = search(acting, typed) if len(typed) > 1 and acting.may_start else []
        return gr.update(choices=[*fixed, *((visible_name(words), id) for words, id in found)])

    box.key_up(
        suggest,
        None,
        box,
        trigger_mode="always_last",
        concurrency_limit=4,
        api_visibility="private",
        show_progress="hidden",
    )
    return box


def wire_repo_names(actions: Actions, fields: Fields) -> None:
    """Where to publish: when the box is opened, a name of base and dataset under each owner that the token may write
    to."""
    box = fields["hub_model_id"]
    assert isinstance(box, gr.Dropdown)

    @for_visitor(actions)
    def suggest(acting: Actions, base: str | None, dataset: str | None) -> dict[str, Any]:
        names = suggested_repos(acting.account(), base or "", shown_name(dataset or ""))
        return gr.update(choices=[_NOWHERE, *((name, name) for name in names)])

    box.focus(
        suggest,
        [fields["base"], fields["dataset"]],
        box,
        concurrency_limit=4,
        api_visibility="private",
        show_progress="hidden",
    )


def form_values(request: TrainingRequest) -> dict[str, Any]:
    """The value of each field for this request; an empty one means "choose for me"."""
    return {name: _field_value(value) for name, value in request.model_dump(mode="json").items()}


def _field_value(value: Any) -> Any:
    if isinstance(value, dict):
        return written_columns(value)
    return "" if value is None else value


def placeholders(fields: Fields, plan: Plan) -> dict[Component, dict[str, Any]]:
    """Empty fields show what was chosen: 'Chosen for you: 16'."""
    chosen = _OFF | {
        choice.name: f"{CHOSEN}: {visible(str(choice.value))}" for choice in plan.choices
    }
    return {
        component: gr.update(placeholder=chosen.get(name, CHOSEN))
        for name, component in fields.items()
        if isinstance(component, gr.Textbox) and TrainingRequest.model_fields[name].default is None
    }


def _choice(
    options: list[tuple[str, Any]], is_optional: bool, common: dict[str, Any]
) -> gr.Dropdown:
    if is_optional:
        options, common = [(CHOSEN, ""), *options], common | {"value": common["value"] or ""}
    return gr.Dropdown(options, **common)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The type without None, and whether None is allowed."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    inner = [kind for kind in get_args(annotation) if kind is not type(None)]
    is_optional = len(inner) < len(get_args(annotation))
    return (_kind(inner[0])[0], is_optional)


def _options(kind: Any) -> list[tuple[str, Any]]:
    if kind == Score:
        return [(words, value) for value, words in SCORE_NAMES.items()]
    if get_origin(kind) is Literal:
        return [(str(value).replace("_", " "), value) for value in get_args(kind)]
    if kind is Format:
        return [(words, member.value) for member, words in FORMATS.items()]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return [(member.value.replace("_", " "), member.value) for member in kind]
    return []


def _help(name: str) -> str:
    field = TrainingRequest.model_fields[name]
    return f"{field.description or ''} {_limits(field.metadata)}".strip()


def _limits(metadata: list[Any]) -> str:
    """'0 to 0.5', 'at least 1'."""
    low = next((getattr(m, a) for m in metadata for a in ("ge", "gt") if hasattr(m, a)), None)
    high = next((getattr(m, a) for m in metadata for a in ("le", "lt") if hasattr(m, a)), None)
    if low is not None and high is not None:
        return f"{low:,g} to {high:,g}." if high < 1e6 else f"At least {low:,g}."
    return f"At least {low:,g}." if low else ""
