"""The proof of what was published last: made right after a push, or when somebody asks for it."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.events import Dependency

from qlora_space.app.actions import Actions
from qlora_space.app.proving import prove
from qlora_space.app.ui.boundary import as_qlora_space_error, for_visitor
from qlora_space.app.ui.navigation import parse_address, run_at
from qlora_space.app.ui.render.html import error_notice, notice, table
from qlora_space.app.ui.render.publish import proof as publications
from qlora_space.core.errors import RunError
from qlora_space.core.export import Exporting
from qlora_space.core.proof import Proof
from qlora_space.core.wording import age, counted, percent, significant
from qlora_space.runs import RunFolder
from qlora_space.runs.proofs import proof_of

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_JUST_PUSHED_SECONDS = 60.0
_NO_PROOF = (
    '<h3 class="panel-title">Proof</h3><p class="hint">What is on the Hub is downloaded into an empty cache, loaded by '
    "the code of its card, and has to answer held-out prompts as the adapter here does.</p>"
)


def add_proof(actions: Actions, address: gr.Textbox, outcome: gr.HTML, sent: Dependency) -> None:
    """Below `outcome`, which changes when the page is opened; after a push was `sent` it is proved."""
    with gr.Column(visible=False, elem_classes="sheet", elem_id="proof-panel") as panel:
        shown = gr.HTML(elem_id="proof")
        again = gr.Button("Download it and compare", scale=0, min_width=220, elem_id="prove")

    def compare(acting: Actions, run: RunFolder) -> Iterator[dict[Any, Any]]:
        yield {
            panel: gr.update(visible=True),
            shown: notice("info", "Downloading what was published …"),
            again: gr.update(visible=False),
        }
        try:
            for reply in prove(acting, run):
                if isinstance(reply, Exporting):
                    yield {shown: notice("info", f"{reply.text} …")}
                    continue
                yield {shown: proof_table(reply), again: gr.update(visible=True)}
                # Above it said which commit is published, or that one is.
                yield {outcome: publications(run.publications(), None, reply)}
        except Exception as error:
            yield {
                shown: error_notice(as_qlora_space_error(error)),
                again: gr.update(visible=True),
            }

    @for_visitor(actions)
    def refresh(acting: Actions, query: str) -> dict[Any, Any]:
        run = _run(acting, query)
        done = run.publications() if run else []
        found = proof_of(run, done[-1].commit) if run and done else None
        return {
            panel: gr.update(visible=bool(done)),
            shown: proof_table(found) if found else _NO_PROOF,
            again: gr.update(visible=True),
        }

    @for_visitor(actions)
    def after_push(acting: Actions, query: str) -> Iterator[dict[Any, Any]]:
        run = _run(acting, query)
        done = run.publications() if run else []
        if run and done and time.time() - done[-1].time < _JUST_PUSHED_SECONDS:
            yield from compare(acting, run)

    @for_visitor(actions)
    def ask(acting: Actions, query: str) -> Iterator[dict[Any, Any]]:
        yield from compare(acting, run_at(acting, query))

    outputs = [panel, shown, again, outcome]
    outcome.change(refresh, address, outputs[:3], concurrency_limit=None, **_PRIVATE)
    limits = {"concurrency_limit": 1, "concurrency_id": "prove", "trigger_mode": "once"} | _PRIVATE
    sent.then(after_push, address, outputs, **limits)
    again.click(ask, address, outputs, **limits)


def _run(acting: Actions, query: str) -> RunFolder | None:
    """None where the address has no run of the visitor: the page says so already."""
    try:
        return run_at(acting, query) if parse_address(query).run_id else None
    except RunError:
        return None


def proof_table(proof: Proof) -> str:
    """A green table, or a red notice with what is wrong."""
    if not proof.is_proved or proof.agreement is None:
        return notice(
            "error",
            "What was published is not what was trained.",
            " ".join(proof.problems),
        )
    found = proof.agreement
    rows = [
        (
            "Same next token",
            f"{percent(found.top1)} of {counted(found.tokens, 'token')} of held-out answers",
        ),
        (
            "Largest difference of a logit",
            significant(found.largest_logit_difference or 0.0, 2),
        ),
        ("Weights in use", "the run's, every value"),
        ("Prompts by its template", f"{proof.same_prompts} of {proof.prompts} as in training"),
        ("Ends of answers", "as in training"),
    ]
    title = f"Downloaded again and compared {age(proof.time)}"
    return f"<h3>{title}</h3>{table(('What', 'Found'), rows, 'Proof by a fresh download')}"
