"""The page "Compare" in HTML: panes, the badge, held-out prompts, the list of what was compared. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_space.app.ui.render.answers import changes_of_mind, differing, odds
from qlora_space.app.ui.render.html import icon, notice, text
from qlora_space.core.comparison import PANES, ComparedRow, Done, Pane, Question, Turn
from qlora_space.core.wording import age, counted, duration, rate, significant
from qlora_space.runs.comparisons import ComparisonLine

View = Literal["answers", "differences", "likelihood"]
State = Literal["idle", "loading", "writing", "stopped", "done"]
_NO_ANSWER: dict[State, str] = {
    "idle": "The answer appears here.",
    "loading": "Waiting …",
    "stopped": "Stopped before the first word.",
    "done": "(an empty answer)",
}
_NO_QUESTION = Question(prompt="")


@dataclass(frozen=True)
class Progress:
    """The answers to one question as far as they are written. `history`: earlier turns of each pane."""

    labels: tuple[str, ...] = ("Base", "Adapted")
    answers: tuple[str, ...] = ("", "")
    question: Question = _NO_QUESTION
    state: State = "idle"
    status: str = ""
    row: ComparedRow | None = None

    @property
    def is_running(self) -> bool:
        return self.state in ("loading", "writing")

    def stopped(self) -> "Progress":
        words = "Stopped. What was written is kept." if any(self.answers) else "Stopped."
        return Progress(self.labels, self.answers, self.question, "stopped", notice("info", words))


def panes(now: Progress, view: View = "answers") -> str:
    """All of them side by side, and below what the view adds."""
    bodies, below = [text(answer) for answer in now.answers], ""
    if now.row is not None and view == "differences":
        pairs = [differing(now.row.base.text, a.text) for a in now.row.answers[1:]]
        bodies = [pairs[0][0], *(adapted for _, adapted in pairs)]
    if now.row is not None and view == "likelihood":
        adapted = list(zip(now.row.answers, now.labels, strict=True))[1:]
        bodies = [text(now.row.base.text), *(odds(answer) for answer, _ in adapted)]
        below = _ODDS_KEY + "".join(changes_of_mind(*each) for each in adapted)
    shown = "".join(
        pane(PANES[number], label, body, _state_of(now, number), now.question.turns_of(number))
        for number, (label, body) in enumerate(zip(now.labels, bodies, strict=True))
    )
    return f'<div class="panes panes-{len(now.labels)}">{shown}</div>{below}'


_ODDS_KEY = (
    '<p class="odds-key"><span class="odds up-2">likelier with the adapter</span> '
    '<span class="odds same">about the same</span> <span class="odds down-2">less likely</span> '
    '<span class="odds changed">the base would write something else</span></p>'
)


def _state_of(now: Progress, number: int) -> State:
    return "loading" if now.state == "writing" and not now.answers[number] else now.state


def pane(name: Pane, label: str, body: str, state: State, before: Sequence[Turn] = ()) -> str:
    """One answer; `body` is markup. `before`: earlier turns of this pane."""
    words = _NO_ANSWER.get(state, "")
    shown = body or (f'<span class="waiting">{words}</span>' if words else "")
    cut = '<p class="waiting">Stopped here.</p>' if state == "stopped" and body else ""
    turns = "".join(
        f'<p class="asked">{text(turn.prompt)}</p><div class="answer">{text(turn.answer)}</div>'
        for turn in before
    )
    return (
        f'<section class="pane pane-{name} {state}" aria-label="{text(label)}"><h3><i></i>{text(label)}</h3>'
        f'{turns}<div class="answer" aria-live="polite">{shown}</div>{cut}</section>'
    )


def badge(done: Done, row: ComparedRow | None = None) -> str:
    """The proof that all answers came from one base, and the figures; of `row` what became of the expected answer."""
    if not done.same_base:
        return notice("error", "The answers did not come from the same base.", "Run them again.")
    about = f"{counted(done.prompt_tokens, 'prompt token')}, " if len(done.rows) == 1 else ""
    about += f"{rate(done.tokens_per_second)}, {duration(done.seconds)}"
    return (
        f'<p class="badge"><span class="chip verified">{icon("done")}Same base, verified</span>'
        f"<span>{about}{_likelihood(row) if row else ''}</span></p>"
    )


def _likelihood(row: ComparedRow) -> str:
    """What the adapter did to the expected answer, in figures that a person can read."""
    if row.gain is None:
        return ""
    direction = "likelier" if row.gain >= 0 else "less likely"
    return f". The expected answer is {direction} with the adapter: {significant(abs(row.gain), 2)} nats per token"


def prompt_chips(rows: Sequence[Question]) -> str:
    if not rows:
        return ""
    chips = "".join(
        f'<button type="button" data-pick="{number}">{text(row.prompt[:200])}</button>'
        for number, row in enumerate(rows)
    )
    return f'<div class="chips"><span>Held-out prompts, never trained on</span>{chips}</div>'


def expected_answer(expected: str) -> str:
    """The answer that the data gives; '' shows nothing."""
    if not expected:
        return ""
    return (
        '<section class="expected" aria-label="Expected answer"><h3>Expected answer</h3>'
        f'<div class="answer">{text(expected)}</div></section>'
    )


def past_comparisons(run_id: str, lines: Sequence[ComparisonLine], shown: str = "") -> str:
    """A link to each that was kept, newest first; `shown` is the id of the open one."""
    if not lines:
        return '<p class="waiting">Comparisons are kept here, with the run.</p>'
    items = "".join(_past(run_id, line, line.id == shown) for line in lines)
    file = f"runs/{run_id}/comparisons/{shown}.json"
    link = f'<p><a href="{file}" download>Download the open one (JSON)</a></p>'
    return f'<ul class="past">{items}</ul>{link if any(x.id == shown for x in lines) else ""}'


def _past(run_id: str, line: ComparisonLine, is_shown: bool) -> str:
    what = counted(line.num_questions, "prompt") if line.num_questions > 1 else line.title
    marked = ' aria-current="true"' if is_shown else ""
    return (
        f'<li><a href="?run={run_id}&view=compare&of={line.id}" data-pick="{line.id}"{marked}>'
        f'<span class="past-title">{text(what)}</span><span>{text(_outcome(line))}</span>'
        f"<time>{age(line.time)}</time></a></li>"
    )


def _outcome(line: ComparisonLine) -> str:
    about = "; ".join(line.labels[1:])
    tally = line.tally
    if tally is None:
        return about
    names = ("base", *(label[0].lower() + label[1:] for label in line.labels[1:]))
    worth = ", ".join(f"{name} {num}" for name, num in zip(names, tally.figures, strict=True))
    return f"{tally.what}: {worth}"
