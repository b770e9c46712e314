"""A tab keeps its visitor's run going where GPUs are lent by the slice: it says every few seconds that it is open."""

import threading
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.navigation import parse_address

_ASK_SECONDS = 10.0
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def wire_keep_going(actions: Actions, address: gr.Textbox) -> None:
    """On ZeroGPU alone: what a slice costs is charged to the visitor whose event asked for it."""
    if not actions.settings.is_zero_gpu:
        return

    resuming = threading.Lock()

    @for_visitor(actions)
    def keep_going(acting: Actions, query: str) -> None:
        run_id = parse_address(query).run_id
        if not run_id or not acting.owns(run_id):  # another page, or a run that was deleted
            return
        run = acting.run(run_id)
        with resuming:  # two tabs of a run start one worker
            view = acting.view(run)
            is_here = run.request().place == "here"  # nothing that costs money starts by itself
            if is_here and view.pause is not None and view.pause.why == "tab":
                acting.resume(run)
        if not view.is_over:
            acting.keep_going(run)

    timer = gr.Timer(_ASK_SECONDS)
    timer.tick(keep_going, address, None, concurrency_limit=None, **_QUIET)
