"""The page "Compare": one prompt, two answers side by side, streamed together."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import for_visitor, shows_errors
from qlora_space.app.ui.navigation import build_pick_list, picked, run_at
from qlora_space.app.ui.render.html import empty, icon, notice, panel_title, text
from qlora_space.core.comparison import Chunk, Done, Loading, Pane, Reply, Sampling
from qlora_space.core.errors import QloraSpaceError
from qlora_space.core.parsing import parse_values
from qlora_space.core.wording import counted, duration, rate
from qlora_space.runs import HeldoutExample, RunView

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_PANES: dict[Pane, str] = {"base": "Base", "adapted": "Adapted"}
_NO_ANSWER = {
    "idle": "The answer appears here.",
    "loading": "Waiting …",
    "stopped": "Stopped before the first word.",
    "done": "(an empty answer)",
}


def pane(name: Pane, answer: str, state: str) -> str:
    """One answer as plain text. `state`: idle, loading, writing, stopped or done."""
    words = _NO_ANSWER.get(state, "")
    body = text(answer) or (f'<span class="waiting">{words}</span>' if words else "")
    cut = '<p class="waiting">Stopped here.</p>' if state == "stopped" and answer else ""
    return (
        f'<section class="pane pane-{name} {state}" aria-label="{_PANES[name]}"><h3><i></i>{_PANES[name]}</h3>'
        f'<div class="answer" aria-live="polite">{body}</div>{cut}</section>'
    )


def badge(done: Done) -> str:
    """The proof that both answers came from one base, and the figures."""
    if not done.same_base:
        return notice(
            "error", "The two answers did not come from the same base.", "Run both again."
        )
    about = f"{counted(done.prompt_tokens, 'prompt token')}, {rate(done.tokens_per_second)}, "
    about += duration(done.seconds)
    return (
        f'<p class="badge"><span class="chip verified">{icon("done")}Same base, verified</span>'
        f"<span>{about}</span></p>"
    )


def prompt_chips(rows: Sequence[HeldoutExample]) -> str:
    if not rows:
        return ""
    chips = "".join(
        f'<button type="button" data-pick="{number}">{text(row.prompt[:200])}</button>'
        for number, row in enumerate(rows)
    )
    return f'<div class="chips"><span>Held-out prompts, never trained on</span>{chips}</div>'


def expected_answer(rows: Sequence[HeldoutExample], prompt: str) -> str:
    """The answer that the data gives to this prompt, if it is a held-out one."""
    known = next((row.expected for row in rows if row.prompt.strip() == prompt.strip()), "")
    if not known:
        return ""
    return (
        '<section class="expected" aria-label="Expected answer"><h3>Expected answer</h3>'
        f'<div class="answer">{text(known)}</div></section>'
    )


@dataclass(frozen=True)
class Progress:
    """Both answers as far as they are written."""

    answers: dict[Pane, str] = field(default_factory=lambda: {"base": "", "adapted": ""})
    state: str = "idle"
    status: str = ""

    @property
    def panes(self) -> tuple[str, str]:
        return self._shown("base"), self._shown("adapted")

    def stopped(self) -> "Progress":
        words = "Stopped. What was written is kept." if any(self.answers.values()) else "Stopped."
        return Progress(self.answers, "stopped", notice("info", words))

    def _shown(self, name: Pane) -> str:
        is_waiting = self.state == "writing" and not self.answers[name]
        return pane(name, self.answers[name], "loading" if is_waiting else self.state)


def streamed(replies: Iterator[Reply]) -> Iterator[Progress]:
    """After every reply."""
    answers: dict[Pane, str] = {"base": "", "adapted": ""}
    yield Progress(answers, "loading", notice("info", "Sending the prompt …"))
    for reply in replies:
        match reply:
            case Loading(text=activity):
                yield Progress(answers, "loading", notice("info", activity))
            case Chunk(pane=name, text=more):
                answers = {**answers, name: answers[name] + more}
                yield Progress(answers, "writing")
            case Done():
                whole: dict[Pane, str] = {"base": reply.base, "adapted": reply.adapted}
                yield Progress(whole, "done", badge(reply))


@dataclass(frozen=True)
class _Panel:
    title: gr.HTML
    missing: gr.HTML
    expected: gr.HTML
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
    fresh = json.dumps(["", "", "", "", *Progress().panes])
    cleared = [panel.title, panel.prompt, panel.expected, panel.status, *panel.panes]
    address.change(None, None, cleared, js=f"() => {fresh}", api_visibility="private")
    _wire_prompts(actions, address, panel)
    _wire_run(actions, address, panel)

    @for_visitor(actions)
    def prepare(acting: Actions, query: str) -> tuple[str, str, str, dict[str, Any]]:
        run = run_at(acting, query)
        title = panel_title(f"“{run.name()}” and its base")
        if not run.has_adapter:
            missing = empty("There is no adapter to compare", _why_missing(acting.view(run)))
            return title, missing, "", gr.update(interactive=False)
        chips = prompt_chips(acting.heldout_examples(run))
        return title, "", chips, gr.update(interactive=True)

    prepared = [panel.title, panel.missing, panel.chips, panel.run]
    tab.select(prepare, address, prepared, concurrency_limit=None, **_PRIVATE)


def _why_missing(view: RunView) -> str:
    match view.status:
        case "cancelled":
            return "The run was stopped and its adapter discarded."
        case "failed":
            return "The run failed before it saved one."
        case "paused":
            return "The run is paused: resume it to get one."
        case "finished":
            return "Its files are gone from this machine."
    return "It appears when the run is done."


def _wire_prompts(actions: Actions, address: gr.Textbox, panel: _Panel) -> None:
    """A held-out prompt that is picked brings its system prompt, and shows the answer that the data gives."""

    @for_visitor(actions)
    def pick(acting: Actions, event: gr.EventData, query: str) -> tuple[Any, ...]:
        rows, number = acting.heldout_examples(run_at(acting, query)), picked(event)
        if not number.isdecimal() or int(number) >= len(rows):
            return gr.skip(), gr.skip(), gr.skip()
        row = rows[int(number)]
        return row.prompt, row.system, expected_answer(rows, row.prompt)

    filled = [panel.prompt, panel.system, panel.expected]
    panel.chips.click(pick, address, filled, **_PRIVATE)


def _build_panel() -> _Panel:
    with gr.Column(elem_classes="sheet", elem_id="compare-prompt"):
        title = gr.HTML(elem_id="compare-title")
        missing = gr.HTML(elem_id="compare-missing")
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
    expected = gr.HTML(elem_id="expected")
    with gr.Row(elem_id="panes"):
        panes = [gr.HTML(markup, min_width=280) for markup in Progress().panes]
    return _Panel(
        title, missing, expected, prompt, chips, system, sampling, run, halt, status, panes
    )


def _wire_run(actions: Actions, address: gr.Textbox, panel: _Panel) -> None:
    """Run both models, stream both answers, stop."""
    progress = gr.State(Progress())

    @for_visitor(actions)
    def answer(
        acting: Actions, query: str, prompt: str, system: str, *values: float
    ) -> Iterator[tuple[Any, ...]]:
        run = run_at(acting, query)
        if not prompt.strip():
            raise QloraSpaceError(
                "There is no prompt yet.", "Write one, or pick one below the box."
            )
        chosen = parse_values(Sampling, dict(zip(panel.sampling, values, strict=True)))
        expected: Any = expected_answer(acting.heldout_examples(run), prompt)
        stop_button: Any = gr.update(visible=True)
        for now in streamed(acting.compare(run, prompt, system, chosen)):
            yield *now.panes, now.status, now, expected, stop_button
            expected = stop_button = gr.skip()

    def interrupt(now: Progress) -> tuple[Any, ...]:
        if now.state not in ("loading", "writing"):
            return (*[gr.skip()] * 3, gr.update(visible=False))
        now = now.stopped()
        return *now.panes, now.status, gr.update(visible=False)

    @shows_errors
    def settle(now: Progress) -> tuple[Any, ...]:
        """After an error the panes wait for nothing."""
        failed = now.state in ("loading", "writing")
        return *(now.stopped() if failed else now).panes, "" if failed else now.status

    inputs = [address, panel.prompt, panel.system, *panel.sampling.values()]
    shown = [*panel.panes, panel.status]
    outputs = [*shown, progress, panel.expected, panel.halt]
    running = panel.run.click(answer, inputs, outputs, concurrency_limit=8, **_PRIVATE)
    running.then(lambda: gr.update(visible=False), None, panel.halt, **_PRIVATE)
    running.failure(settle, progress, shown, **_PRIVATE)
    panel.halt.click(interrupt, progress, [*shown, panel.halt], cancels=[running], **_PRIVATE)


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
