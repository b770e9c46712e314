"""One prompt to base and adapters: answers that stream side by side, and a conversation that goes on in every pane."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.comparing import compare_and_keep, labels
from qlora_space.app.ui.boundary import for_visitor, shows_errors
from qlora_space.app.ui.compare_settings import CompareSettings
from qlora_space.app.ui.navigation import build_pick_list, picked, run_at
from qlora_space.app.ui.render.compare import Progress, View, badge, expected_answer, panes
from qlora_space.app.ui.render.html import notice
from qlora_space.core.comparison import PANES, Answered, Chunk, Done, Kept, Loading, Question, Reply
from qlora_space.core.errors import QloraSpaceError
from qlora_space.runs import RunFolder
from qlora_space.runs.comparisons import Comparison

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_VIEWS = [
    ("Answers", "answers"),
    ("Differences", "differences"),
    ("Token probabilities", "likelihood"),
]


@dataclass(frozen=True)
class AskPanel:
    prompt: gr.Textbox
    chips: gr.HTML
    system: gr.Textbox
    run: gr.Button
    more: gr.Button
    halt: gr.Button
    view: gr.Radio
    status: gr.HTML
    expected: gr.HTML
    panes: gr.HTML
    progress: gr.State

    @property
    def outputs(self) -> list[Component]:
        """What `opened` fills."""
        return [
            *(self.prompt, self.system, self.expected, self.status, self.panes),
            *(self.progress, self.more, self.view),
        ]

    def opened(self, kept: Comparison | None, number: int = 0) -> tuple[Any, ...]:
        """With a question of a comparison that was kept; None: empty."""
        if kept is None:
            return ("", "", "", "", panes(Progress()), Progress(), *_after(Progress()))
        now = finished(kept.done, kept.line.labels, number)
        row = kept.done.rows[number]
        status, shown = now.status, panes(now)
        return (
            *(row.prompt, row.system, expected_answer(row.expected), status, shown, now),
            *_after(now),
        )


def finished(done: Done, names: tuple[str, ...], number: int = 0) -> Progress:
    """The answers to the question of that number."""
    row = done.rows[number]
    answers = tuple(answer.text for answer in row.answers)
    return Progress(names, answers, row, "done", badge(done, row), row)


def streamed(
    replies: Iterator[Reply], question: Question, names: tuple[str, ...]
) -> Iterator[tuple[Progress, str]]:
    """After every reply: the answers, and the id of the comparison once it is kept."""
    now = Progress(names, ("",) * len(names), question)
    waiting = replace(now, state="loading")
    yield replace(waiting, status=notice("info", "Sending the prompt …")), ""
    kept = ""
    for reply in replies:
        match reply:
            case Loading(text=activity):
                yield replace(waiting, status=notice("info", activity)), ""
            case Chunk(pane=name, text=more):
                number = PANES.index(name)
                answers = list(now.answers)
                answers[number] += more
                now = replace(now, answers=tuple(answers), state="writing")
                yield now, ""
            case Kept(id=kept):
                pass
            case Done():
                yield finished(reply, names), kept
            case Answered():
                pass


def build_ask_panel() -> AskPanel:
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
        with gr.Accordion("System prompt", open=False):
            system = gr.Textbox("", label="System prompt", lines=2, elem_id="system")
        with gr.Row(elem_id="compare-buttons"):
            run = _button("Run both models", "run-both", 160, variant="primary", interactive=False)
            more = _button("Continue the conversation", "continue", 240, visible=False)
            halt = _button("Stop", "halt", 100, visible=False)
    status = gr.HTML(elem_id="compare-status")
    view = gr.Radio(
        _VIEWS,
        value="answers",
        label="Show",
        elem_id="answers-view",
        visible=False,
        container=False,
    )
    expected = gr.HTML(elem_id="expected")
    shown = gr.HTML(panes(Progress()), elem_id="panes")
    progress = gr.State(Progress())
    return AskPanel(prompt, chips, system, run, more, halt, view, status, expected, shown, progress)


def _button(words: str, elem_id: str, width: int, **more: Any) -> gr.Button:
    return gr.Button(words, elem_id=elem_id, scale=0, min_width=width, size="md", **more)


def wire_ask_panel(
    actions: Actions,
    address: gr.Textbox,
    panel: AskPanel,
    settings: CompareSettings,
    opened: gr.Textbox,
) -> None:
    """`opened`: id of the comparison that is shown, which is in the URL."""
    _wire_chips(actions, address, panel)
    shown = [panel.panes, panel.status]
    buttons = [panel.more, panel.view, panel.halt]
    outputs = [*shown, panel.progress, panel.expected, opened, *buttons]
    inputs = [address, panel.prompt, panel.system, panel.progress, *settings.fields]

    def answer_when(goes_on: bool) -> Any:
        @for_visitor(actions)
        def answer(
            acting: Actions, query: str, prompt: str, system: str, now: Progress, *values: Any
        ) -> Iterator[tuple[Any, ...]]:
            run, options = run_at(acting, query), settings.options(values)
            question = _question(acting, run, prompt, system, now if goes_on else None)
            names = labels(acting, options)
            first: tuple[Any, ...] = (expected_answer(question.expected), "")
            replies = compare_and_keep(acting, run, [question], options)
            for step, kept in streamed(replies, question, names):
                rest = (kept or gr.skip(), *_after(step), gr.update(visible=step.is_running))
                yield (panes(step), step.status, step, *first[:1], *rest)
                first = (gr.skip(), "")

        return answer

    starts = [panel.run.click(answer_when(False), inputs, outputs, concurrency_limit=8, **PRIVATE)]
    starts.append(
        panel.more.click(answer_when(True), inputs, outputs, concurrency_limit=8, **PRIVATE)
    )
    for running in starts:
        running.failure(settle, panel.progress, [*shown, panel.halt], **PRIVATE)
    stopped = [*shown, panel.progress, panel.halt]
    panel.halt.click(interrupt, panel.progress, stopped, cancels=[*starts], **PRIVATE)
    seen = [panel.progress, panel.view]
    panel.view.change(shows_errors(_show), seen, panel.panes, **PRIVATE)


def _show(now: Progress, view: View) -> str:
    return panes(now, view)


def _after(now: Progress) -> tuple[Any, Any]:
    """The button that goes on and the choice of a view, which need whole answers."""
    is_whole = now.row is not None
    view = gr.update(visible=is_whole, value="answers")
    return gr.update(visible=is_whole), view


def _question(
    acting: Actions, run: RunFolder, prompt: str, system: str, now: Progress | None
) -> Question:
    """The held-out row with that prompt, if there is one; with `now` the next turn. Raises QloraSpaceError."""
    if not prompt.strip():
        raise QloraSpaceError("There is no prompt yet.", "Write one, or pick one below the box.")
    if now is not None and now.row is not None:
        return Question(prompt=prompt, system=now.row.system, history=now.row.turns)
    asked = (prompt.strip(), system.strip())
    rows = acting.heldout_questions(run)
    known = next((r for r in rows if (r.prompt.strip(), r.system.strip()) == asked), None)
    return known or Question(prompt=prompt, system=system)


def interrupt(now: Progress) -> tuple[Any, ...]:
    if not now.is_running:
        return (*[gr.skip()] * 3, gr.update(visible=False))
    now = now.stopped()
    return panes(now), now.status, now, gr.update(visible=False)


@shows_errors
def settle(now: Progress) -> tuple[Any, ...]:
    """After an error the panes wait for nothing."""
    now, status = (now.stopped(), "") if now.is_running else (now, now.status)
    return panes(now), status, gr.update(visible=False)


def _wire_chips(actions: Actions, address: gr.Textbox, panel: AskPanel) -> None:
    """A held-out prompt that is picked brings its system prompt, and shows the answer that the data gives."""

    @for_visitor(actions)
    def pick(acting: Actions, event: gr.EventData, query: str) -> tuple[Any, ...]:
        rows, number = acting.heldout_questions(run_at(acting, query)), picked(event)
        if not number.isdecimal() or int(number) >= len(rows):
            return gr.skip(), gr.skip(), gr.skip()
        row = rows[int(number)]
        return row.prompt, row.system, expected_answer(row.expected)

    filled = [panel.prompt, panel.system, panel.expected]
    panel.chips.click(pick, address, filled, **PRIVATE)
