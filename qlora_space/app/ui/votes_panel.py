"""Blind votes: pairs of answers in random order, keys to vote with, the running win rate, and a dataset of it."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from qlora_space.app.actions import Actions
from qlora_space.app.comparing import compare_and_keep
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.compare_settings import CompareSettings
from qlora_space.app.ui.navigation import run_at
from qlora_space.app.ui.render.compare_table import answering
from qlora_space.app.ui.render.html import notice
from qlora_space.app.ui.render.votes import pair, standing
from qlora_space.app.ui.uploads import dataset_source, keep_upload
from qlora_space.app.voting import Ballot, cast, newest_batch, open_ballot
from qlora_space.core.comparison import Answered, Kept, Loading
from qlora_space.core.errors import QloraSpaceError, RunError
from qlora_space.runs import RunFolder
from qlora_space.runs.votes import preference_rows, tally, votes

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_SIDES = (("left", "Left is better (1)"), ("tie", "Tie (0)"), ("right", "Right is better (2)"))


@dataclass(frozen=True)
class VotesPanel:
    start: gr.Button
    again: gr.Button
    status: gr.HTML
    pair: gr.HTML
    buttons: gr.Row
    sides: dict[str, gr.Button]
    standing: gr.HTML
    dataset: gr.Button  # page.py fills the form of a new run with it
    ballot: gr.State

    @property
    def outputs(self) -> list[Component]:
        """What `opened` fills."""
        return [self.status, self.pair, self.buttons, self.standing, self.dataset, self.ballot]  # type: ignore[list-item]

    def opened(self, run: RunFolder) -> tuple[Any, ...]:
        """The votes so far, no pair yet."""
        return "", *_shown(run, None)


def _shown(run: RunFolder, ballot: Ballot | None) -> tuple[Any, ...]:
    """Values of pair, buttons, standing, dataset and ballot."""
    counted = tally(votes(run))
    is_open = ballot is not None and ballot.row is not None
    return (
        pair(ballot),
        gr.update(visible=is_open),
        standing(counted, run.id),
        gr.update(visible=counted.wins + counted.losses > 0),
        ballot,
    )


def build_votes_panel() -> VotesPanel:
    with gr.Column(elem_classes="sheet", elem_id="votes-panel"):
        gr.HTML(
            '<p class="hint">Two answers to the same held-out prompt, in random order; nothing says which is the '
            "base. Keys: 1 left, 2 right, 0 tie.</p>"
        )
        with gr.Row(elem_id="votes-start"):
            start = _button("Start voting", "start-voting", variant="primary")
            again = _button("Vote on new answers", "vote-again")
        status = gr.HTML(elem_id="votes-status")
        shown = gr.HTML(elem_id="vote-pair")
        with gr.Row(visible=False, elem_id="vote-buttons") as buttons:
            sides = {side: _button(words, f"vote-{side}") for side, words in _SIDES}
        standing_ = gr.HTML(elem_id="vote-standing")
        dataset = _button("Make a preference dataset", "vote-dataset", visible=False)
    ballot = gr.State(None)
    return VotesPanel(start, again, status, shown, buttons, sides, standing_, dataset, ballot)


def _button(words: str, elem_id: str, **more: Any) -> gr.Button:
    return gr.Button(words, elem_id=elem_id, scale=0, min_width=210, size="md", **more)


def wire_votes_panel(
    actions: Actions, address: gr.Textbox, panel: VotesPanel, settings: CompareSettings
) -> None:
    def start_when(is_anew: bool) -> Any:
        @for_visitor(actions)
        def start_voting(acting: Actions, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
            run = run_at(acting, query)
            kept = "" if is_anew else newest_batch(acting, run)
            waiting = [gr.skip()] * 5
            for words, found in () if kept else _answer(acting, run, settings, values):
                kept = found
                yield words, *waiting
            yield "", *_shown(run, open_ballot(acting, run, kept))

        return start_voting

    inputs = [address, *settings.fields]
    for button, is_anew in ((panel.start, False), (panel.again, True)):
        button.click(start_when(is_anew), inputs, panel.outputs, concurrency_limit=8, **_PRIVATE)
    for side, button in panel.sides.items():
        button.click(_vote_for(actions, side), [address, panel.ballot], panel.outputs, **_PRIVATE)


def _answer(
    acting: Actions, run: RunFolder, settings: CompareSettings, values: tuple[Any, ...]
) -> Iterator[tuple[str, str]]:
    """Held-out prompts answered: what is going on, and at last the id of the comparison."""
    questions = acting.heldout_questions(run)
    if len(questions) < 2:
        raise QloraSpaceError("This run holds too few rows out.", "Start one with held-out rows.")
    yield notice("info", "Sending the prompts …"), ""
    for reply in compare_and_keep(acting, run, questions, settings.options(values)):
        match reply:
            case Loading(text=activity):
                yield notice("info", activity), ""
            case Answered(done=done, total=total):
                yield answering(done, total), ""
            case Kept(id=kept):
                yield "", kept


def _vote_for(actions: Actions, side: str) -> Any:
    @for_visitor(actions)
    def vote(acting: Actions, query: str, ballot: Ballot | None) -> tuple[Any, ...]:
        run = run_at(acting, query)
        if ballot is None:
            raise RunError("There is no pair to vote on.", "Start voting.")
        return "", *_shown(run, cast(acting, run, ballot, side))

    return vote


def preference_dataset(acting: Actions, run: RunFolder) -> str:
    """The decided votes as an upload of this person's: the source of it. Raises RunError if there is none, DiskFull."""
    rows = preference_rows(votes(acting.run(run.id)))
    if not rows:
        raise RunError("There is no decided vote yet.", "Vote on some pairs first.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "votes.jsonl"
        file.write_text(rows, encoding="utf-8")
        return dataset_source(acting, keep_upload(acting, file))
