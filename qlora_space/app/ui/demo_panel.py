"""A demo Space of a run's adapter: what it would be and why, the button that makes it, and what was made."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import as_qlora_space_error, for_visitor
from qlora_space.app.ui.navigation import parse_address, run_at
from qlora_space.app.ui.render.html import error_notice, notice, text
from qlora_space.app.ui.render.publish import made_line
from qlora_space.core.errors import Conflict, RequestError, RunError
from qlora_space.core.parsing import parse_values
from qlora_space.hub import suggested_repo
from qlora_space.hub.demo_space import demo_of
from qlora_space.hub.publish import HARDWARE_NAMES
from qlora_space.runs import PushRequest, RunFolder

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_WORDS = (
    "A Space of your own where anybody asks the base and the adapter the same thing, side by side. Its code is short, "
    "and yours to change."
)


@dataclass(frozen=True)
class _Panel:
    group: gr.Column
    why: gr.HTML
    controls: gr.Row
    repo: gr.Textbox
    hardware: gr.Dropdown
    replaces: gr.Checkbox
    make: gr.Button
    outcome: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [
            self.group, self.why, self.controls, self.repo, self.hardware, self.replaces, self.make,
            self.outcome,
        ]  # fmt: skip


def add_demo(actions: Actions, address: gr.Textbox, published: gr.HTML) -> None:
    """Below `published`, which changes when the page is opened and after each push."""
    panel = _build_panel()

    @for_visitor(actions)
    def refresh(acting: Actions, query: str) -> dict[Any, Any]:
        return _shown(acting, _run(acting, query), panel)

    @for_visitor(actions)
    def explain(acting: Actions, query: str, hardware: str) -> str:
        run = _run(acting, query)
        return _why(run, hardware) if run and run.publications() else ""

    @for_visitor(actions)
    def make(
        acting: Actions, query: str, repo: str, hardware: str, replaces: bool
    ) -> Iterator[dict[Any, Any]]:
        yield {
            panel.outcome: notice("info", "Making the Space …"),
            panel.make: gr.update(interactive=False),
        }
        try:
            run = run_at(acting, query)
            acting.publish(run, _request(repo, hardware, replaces=replaces))
            yield {
                panel.outcome: made(run),
                panel.make: gr.update(interactive=True, value=_button(run)),
                panel.replaces: gr.update(value=False, visible=False),
            }
        except Exception as error:
            yield {
                panel.outcome: error_notice(as_qlora_space_error(error)) + _made_at(acting, query),
                panel.make: gr.update(interactive=True),
                panel.replaces: gr.update(visible=replaces or isinstance(error, Conflict)),
            }

    published.change(refresh, address, panel.outputs, concurrency_limit=None, **_PRIVATE)
    panel.repo.change(  # it was said of the other repository
        None, None, panel.replaces, js="() => false", api_visibility="private"
    )
    panel.hardware.input(explain, [address, panel.hardware], panel.why, **_PRIVATE)
    panel.make.click(
        make,
        [address, panel.repo, panel.hardware, panel.replaces],
        [panel.outcome, panel.make, panel.replaces],
        concurrency_limit=4,
        trigger_mode="once",
        **_PRIVATE,
    )


def _build_panel() -> _Panel:
    with gr.Column(visible=False, elem_classes="sheet", elem_id="demo-panel") as group:
        gr.HTML(f'<h3 class="panel-title">Demo Space</h3><p class="hint">{_WORDS}</p>')
        with gr.Row(elem_classes="fields") as controls:
            repo = gr.Textbox(
                "",
                label="Space",
                info="owner/name",
                elem_id="demo-repo",
                max_lines=1,
                max_length=200,
                scale=2,
                min_width=240,
            )
            hardware = gr.Dropdown(
                [(words, name) for name, words in HARDWARE_NAMES.items()],
                label="Hardware",
                info="Of a new Space",
                elem_id="demo-hardware",
                min_width=160,
            )
        why = gr.HTML(elem_id="demo-why")
        replaces = gr.Checkbox(
            label="Replace what was changed on the Hub",
            value=False,
            visible=False,
            elem_id="demo-replace",
        )
        make = gr.Button("Make the demo Space", scale=0, min_width=220, elem_id="demo-make")
        outcome = gr.HTML(elem_id="demo-made")
    return _Panel(group, why, controls, repo, hardware, replaces, make, outcome)


def _shown(acting: Actions, run: RunFolder | None, panel: _Panel) -> dict[Any, Any]:
    if run is None or not run.publications():
        return {panel.group: gr.update(visible=False)}
    shown: dict[Any, Any] = {panel.group: gr.update(visible=True), panel.outcome: made(run)}
    try:
        demo = demo_of(run)
    except RunError as error:
        off = gr.update(visible=False)
        why = notice("info", error.what, error.hint)
        return shown | {panel.why: why, panel.controls: off, panel.replaces: off, panel.make: off}
    return shown | {
        panel.why: _hint(demo.why),
        panel.controls: gr.update(visible=True),
        panel.repo: suggested_repo(acting.account(), run, "demo-space"),
        panel.hardware: demo.hardware,
        panel.make: gr.update(visible=True, value=_button(run)),
    }


def _why(run: RunFolder, hardware: str) -> str:
    """Why not, if that hardware does not take it."""
    try:
        return _hint(demo_of(run, _request("a/b", hardware).hardware).why)
    except RunError as error:
        return error_notice(error)


def _hint(words: str) -> str:
    return f'<p class="hint">{text(words)}</p>'


def _request(repo: str, hardware: str, *, replaces: bool = False) -> PushRequest:
    """Raises RequestError. Public where adapter and base are: publishing sees to that."""
    if not repo.strip():
        raise RequestError("The Space has no name.", "Write one, as in your-name/my-demo.")
    values = {
        "repo": repo.strip(),
        "what": "demo-space",
        "private": False,
        "hardware": hardware,
        "replace": replaces,
    }
    return parse_values(PushRequest, values)


def _button(run: RunFolder) -> str:
    is_there = any(each.what == "demo-space" for each in run.all_publications())
    return "Update the demo Space" if is_there else "Make the demo Space"


def made(run: RunFolder) -> str:
    """The Space that was made last, with what its owner should know; '' without one."""
    done = [each for each in run.all_publications() if each.what == "demo-space"]
    return made_line(done[-1]) if done else ""


def _made_at(acting: Actions, query: str) -> str:
    run = _run(acting, query)
    return made(run) if run else ""


def _run(acting: Actions, query: str) -> RunFolder | None:
    """None where the address has no run of the visitor: the page says so already."""
    try:
        return run_at(acting, query) if parse_address(query).run_id else None
    except RunError:
        return None
