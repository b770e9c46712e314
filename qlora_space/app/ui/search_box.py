"""A box that searches the Hub while one types."""

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.ui.boundary import shows_errors
from qlora_space.app.ui.form import LABELS
from qlora_space.core.options import DEMO


def build_search_box(name: str, choices: list[tuple[str, str]]) -> gr.Dropdown:
    """A box that suggests while one types and takes anything."""
    hint = {"dataset": "A Hub dataset as owner/name, or 'demo'.", "base": "A Hub model, or 'demo'."}
    return gr.Dropdown(
        choices,
        value=DEMO,
        allow_custom_value=True,
        label=f"{LABELS[name]}: search the Hub or write an id",
        info=hint[name],
        elem_id=f"field-{name}",
        scale=1,
    )


def suggest_on_typing(
    box: Component, find: Callable[[str, str | None], list[str]], fixed: list[tuple[str, str]]
) -> None:
    """`fixed` stands above what the Hub knows. page.js asks only when typing pauses."""

    def suggest(key: gr.KeyUpData, token: gr.OAuthToken | None) -> dict[str, Any]:
        found = find(key.input_value, token and token.token) if len(key.input_value) > 1 else []
        return gr.update(choices=[*fixed, *((name, name) for name in found)])

    box.key_up(  # type: ignore[attr-defined]
        shows_errors(suggest),
        None,
        box,
        trigger_mode="always_last",
        concurrency_limit=4,
        api_visibility="private",
        show_progress="hidden",
    )
