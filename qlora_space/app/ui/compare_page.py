"""The page "Compare": one prompt, two answers side by side, streamed together."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import shows_errors
from qlora_space.app.ui.navigation import build_pick_list, picked, run_at
from qlora_space.app.ui.render.html import empty, icon, notice, text
from qlora_space.core.comparison import Chunk, Done, Loading, Pane, Reply, Sampling
from qlora_space.core.errors import QloraSpaceError
from qlora_space.core.parsing import parse_values
from qlora_space.core.wording import counted, duration, rate

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_PANES: dict[Pane, str] = {"base": "Base", "adapted": "Adapted"}
_SHORT_ID = 12


def pane(name: Pane, answer: str, state: str) -> str:
    """One answer as plain text. `state`: idle, loading, writing or done."""
    waiting = '<span class="waiting">Waiting …</span>' if state == "loading" else ""
    idle = '<span class="waiting">The answer appears here.</span>' if state == "idle" else ""
    nothing = '<span class="waiting">(an empty answer)</span>' if state == "done" else ""
    body = text(answer) or waiting or idle or nothing
    return (
        f'<section class="pane pane-{name} {state}" aria-label="{_PANES[name]}">'
        f'<h3><i></i>{_PANES[name]}</h3><div class="answer" aria-live="polite">{body}</div></section>'
    )


def badge(done: Done) -> str:
    """The proof that both answers came from one base, and the figures."""
    short = text(done.base_fingerprint[:_SHORT_ID])
    about = f"{counted(done.prompt_tokens, 'prompt token')}, {rate(done.tokens_per_second)}, "
    about += duration(done.seconds)
    if not done.same_base:
        return notice("error", "The two answers did not come from the same base.", f"({short})")
    return (
        f'<p class="badge"><span class="chip verified">{icon("done")}Same base, verified</span>'
        f"<code>{short}</code><span>{about}</span></p>"
    )


def prompt_chips(prompts: list[str]) -> str:
    if not prompts:
        return ""
    chips = "".join(
        f'<button type="button" data-pick="{text(p)}">{text(p[:200])}</button>' for p in prompts
    )
    return f'<div class="chips"><span>Held-out prompts, never trained on</span>{chips}</div>'


def streamed(replies: Iterator[Reply]) -> Iterator[tuple[str, str, str]]:
    """(base pane, adapted pane, status line) after every reply."""
    answers: dict[Pane, str] = {"base": "", "adapted": ""}
    yield _outputs(answers, "loading", notice("info", "Sending the prompt …"))
    for reply in replies:
        match reply:
            case Loading(text=activity):
                yield _outputs(answers, "loading", notice("info", activity))
            case Chunk(pane=name, text=more):
                answers[name] += more
                yield _outputs(answers, "writing", "")
            case Done():
                yield _outputs({"base": reply.base, "adapted": reply.adapted}, "done", badge(reply))


def _outputs(answers: dict[Pane, str], state: str, status: str) -> tuple[str, str, str]:
    def shown(name: Pane) -> str:
        is_waiting = state == "writing" and not answers[name]
        return pane(name, answers[name], "loading" if is_waiting else state)

    return shown("base"), shown("adapted"), status


@dataclass(frozen=True)
class _Panel:
    missing: gr.HTML
    prompt: gr.Textbox
    chips: gr.HTML
    system: gr.Textbox
    sampling: dict[str, Component]
    run: gr.Button
    halt: gr.Button
    status: gr.HTML
    panes: list[gr.HTML]


def build_compare_page(actions: Actions, address: gr.Textbox, tab: gr.Tab) -> None:
    """Lay out and wire the page inside the current tab."""
    panel = _build_panel()
    # In the browser, at once: nothing of another run is visible while this one is prepared.
    fresh = json.dumps(["", "", *(pane(name, "", "idle") for name in _PANES)])
    cleared = [panel.prompt, panel.status, *panel.panes]
    address.change(None, None, cleared, js=f"() => {fresh}", api_visibility="private")
    panel.chips.click(picked, None, panel.prompt, **_PRIVATE)
    _wire_run(actions, address, panel)

    @shows_errors
    def prepare(query: str) -> tuple[str, str, dict[str, Any]]:
        run = run_at(actions, query)
        if not run.has_adapter:
            missing = empty(
                "There is no adapter to compare yet", "It appears when the run is done."
            )
            return missing, "", gr.update(interactive=False)
        return "", prompt_chips(actions.heldout_prompts(run)), gr.update(interactive=True)

    prepared = [panel.missing, panel.chips, panel.run]
    tab.select(prepare, address, prepared, concurrency_limit=None, **_PRIVATE)


def _build_panel() -> _Panel:
    missing = gr.HTML(elem_id="compare-missing")
    with gr.Column(elem_classes="sheet", elem_id="compare-prompt"):
        prompt = gr.Textbox(
            "",
            label="Prompt",
            lines=3,
            max_lines=12,
            placeholder="Ask both models the same thing",
            elem_id="prompt",
        )
        chips = build_pick_list("", elem_id="chips")
        with gr.Accordion("System prompt and sampling", open=False):
            system = gr.Textbox("", label="System prompt", lines=2, elem_id="system")
            with gr.Row(elem_classes="group"):
                sampling = {name: _sampling_field(name) for name in Sampling.model_fields}
        with gr.Row(elem_id="compare-buttons"):
            run = gr.Button(
                "Run both models",
                variant="primary",
                elem_id="run-both",
                scale=0,
                min_width=160,
                size="md",
            )
            halt = gr.Button(
                "Stop", elem_id="halt", scale=0, min_width=100, size="md", visible=False
            )
    status = gr.HTML(elem_id="compare-status")
    with gr.Row(elem_id="panes"):
        panes = [gr.HTML(pane(name, "", "idle"), min_width=280) for name in _PANES]
    return _Panel(missing, prompt, chips, system, sampling, run, halt, status, panes)


def _wire_run(actions: Actions, address: gr.Textbox, panel: _Panel) -> None:
    """Run both models, stream both answers, stop."""

    @shows_errors
    def answer(
        query: str, prompt: str, system: str, token: gr.OAuthToken | None, *values: float
    ) -> Iterator[tuple[Any, ...]]:
        run = run_at(actions, query)
        if not prompt.strip():
            raise QloraSpaceError(
                "There is no prompt yet.", "Write one, or pick one below the box."
            )
        chosen = parse_values(Sampling, dict(zip(panel.sampling, values, strict=True)))
        stop_button: Any = gr.update(visible=True)
        for outputs in streamed(
            actions.compare(run, prompt, system, chosen, token and token.token)
        ):
            yield *outputs, stop_button
            stop_button = gr.skip()

    inputs = [address, panel.prompt, panel.system, *panel.sampling.values()]
    outputs = [*panel.panes, panel.status, panel.halt]
    running = panel.run.click(answer, inputs, outputs, concurrency_limit=8, **_PRIVATE)
    running.then(lambda: gr.update(visible=False), None, panel.halt, **_PRIVATE)
    stopped = (gr.update(visible=False), notice("info", "Stopped. What was written is kept."))
    panel.halt.click(
        lambda: stopped, None, [panel.halt, panel.status], cancels=[running], **_PRIVATE
    )


def _sampling_field(name: str) -> Component:
    field = Sampling.model_fields[name]
    low = next((m.ge for m in field.metadata if hasattr(m, "ge")), 0.01)
    high = next((m.le for m in field.metadata if hasattr(m, "le")), None)
    label, info = name.replace("_", " ").capitalize(), field.description
    common: dict[str, Any] = {
        "value": field.default,
        "label": label,
        "info": info,
        "min_width": 200,
    }
    if field.annotation is int:
        return gr.Number(minimum=low, maximum=high, precision=0, **common)
    return gr.Slider(low, high or 1, step=0.01, **common)
