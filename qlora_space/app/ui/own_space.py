"""A Space of the visitor's own with this app on it: first what would be done, then doing it."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.render.html import notice, text
from qlora_space.core.errors import RequestError
from qlora_space.hub.deploy import Deployment, SpaceSettings

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_HARDWARE = [
    ("Free CPU: for the demo", "cpu-basic"),
    ("Nvidia T4, 16 GB", "t4-small"),
    ("Nvidia L4, 24 GB", "l4x1"),
    ("Nvidia L40S, 48 GB", "l40sx1"),
    ("Nvidia A100, 80 GB", "a100-large"),
]
_SLEEP_SECONDS = 3600
_WORDS = (
    '<p class="hint">This app on your account: your GPU, your disk, nobody beside you. It is private. A GPU costs '
    "money by the hour while it is awake; it sleeps after an hour without visitors.</p>"
)


def build_own_space(actions: Actions) -> None:
    """In the sidebar, folded."""
    with gr.Accordion("A Space of your own", open=False, elem_id="own-space"):
        gr.HTML(_WORDS)
        name = gr.Textbox(
            "qlora-space", label="Name", max_lines=1, max_length=96, elem_id="own-space-name"
        )
        hardware = gr.Dropdown(
            _HARDWARE, value="l4x1", label="Hardware", elem_id="own-space-hardware"
        )
        plan = gr.Button("See what would be done", size="sm", elem_id="own-space-plan")
        found = gr.HTML(elem_id="own-space-changes")
        make = gr.Button(
            "Do it", size="sm", variant="primary", visible=False, elem_id="own-space-make"
        )

    @for_visitor(actions)
    def read_plan(acting: Actions, repo: str, kind: str) -> tuple[str, dict[str, Any]]:
        planned = acting.plan_deployment(_named(repo), _settings(kind))
        return render_deployment(planned, is_done=False), gr.update(visible=bool(planned.changes))

    @for_visitor(actions)
    def deploy(acting: Actions, repo: str, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        yield notice("info", "Making the Space …"), gr.update(interactive=False)
        try:
            done = acting.deploy(_named(repo), _settings(kind), lambda _: None)
        except Exception:
            yield "", gr.update(interactive=True)
            raise
        yield render_deployment(done, is_done=True), gr.update(visible=False, interactive=True)

    inputs, outputs = [name, hardware], [found, make]
    plan.click(read_plan, inputs, outputs, trigger_mode="once", **_PRIVATE)
    make.click(deploy, inputs, outputs, trigger_mode="once", **_PRIVATE)
    for changed in (name.change, hardware.change):  # what was shown is of another Space
        changed(lambda: ("", gr.update(visible=False)), None, outputs, **_PRIVATE)


def render_deployment(deployment: Deployment, *, is_done: bool) -> str:
    """What would be done or was, and what else to know."""
    link = f'<a href="{text(deployment.url)}" target="_blank" rel="noopener">{text(deployment.repo)}</a>'
    if is_done:
        head = f"<p><strong>Done.</strong> {link} builds for some minutes.</p>"
    elif deployment.changes:
        head = f"<p>This makes or changes <strong>{text(deployment.repo)}</strong>:</p>"
    else:
        return f"<p>{link} is as asked: nothing to do.</p>"
    items = "".join(f"<li>{text(change)}</li>" for change in deployment.changes)
    notes = "".join(notice("info", words) for words in deployment.notes)
    return f"{head}<ul>{items}</ul>{notes}"


def _named(repo: str) -> str:
    if not repo.strip():
        raise RequestError("The Space has no name.", "Write one.")
    return repo.strip()


def _settings(hardware: str) -> SpaceSettings:
    if hardware not in (value for _, value in _HARDWARE):
        raise RequestError(f"hardware is {hardware!r:.40}.", "Choose one of the list.")
    sleep = None if hardware == "cpu-basic" else _SLEEP_SECONDS
    return SpaceSettings(hardware=hardware, sleep_seconds=sleep)
