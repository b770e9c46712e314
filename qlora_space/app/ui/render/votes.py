"""Blind votes in HTML: a pair that does not say which is which, and what the votes come to. Pure functions."""

from qlora_space.app.ui.render.html import text
from qlora_space.app.voting import Ballot
from qlora_space.core.votes import votes_missing, win_rate
from qlora_space.core.wording import counted, percent
from qlora_space.runs.votes import Tally


def pair(ballot: Ballot | None) -> str:
    """The prompt and both answers under neutral names."""
    if ballot is None:
        return ""
    row = ballot.row
    if row is None:
        done = "These answers are all voted on." if ballot.num_all else "All answers are the same."
        return f'<p class="waiting">{done} Run the held-out prompts again for more.</p>'
    before = "".join(
        f'<p class="asked">{text(turn.prompt)}</p><p class="asked">{text(turn.answer)}</p>'
        for turn in row.turns_of(0)
    )
    panes = "".join(
        f'<section class="pane pane-blind" aria-label="{name}"><h3>{name}</h3>'
        f'<div class="answer">{text(answer) or _EMPTY}</div></section>'
        for name, answer in zip(("Left", "Right"), ballot.sides, strict=True)
    )
    left = ballot.num_all - len(ballot.rows)
    return (
        f'<p class="tally"><small>Pair {left + 1} of {ballot.num_all}</small></p>'
        f'<div class="vote-prompt">{before}<p>{text(row.prompt)}</p></div><div class="panes">{panes}</div>'
    )


_EMPTY = '<span class="waiting">(an empty answer)</span>'


def standing(tally: Tally, run_id: str) -> str:
    """The win rate with its interval, what is still missing, and the export."""
    decided = tally.wins + tally.losses
    found = win_rate(tally.wins, tally.losses)
    if found is None:
        words = (
            "No votes yet." if not tally.ties else f"{counted(tally.ties, 'tie')}, nothing decided."
        )
        return f'<p class="tally">{words}</p>'
    ties = f", {counted(tally.ties, 'tie')}" if tally.ties else ""
    return (
        f'<p class="tally"><b>Adapted won {tally.wins} of {decided}</b> ({percent(found.rate)}; 95 % interval '
        f"{percent(found.low)} to {percent(found.high)}){ties}. {_verdict(tally)}</p>"
        f'<p class="tally"><a href="runs/{run_id}/votes.jsonl" download>Export all votes</a></p>'
    )


def _verdict(tally: Tally) -> str:
    missing = votes_missing(tally.wins, tally.losses)
    if missing == 0:
        better = "adapted model" if tally.wins > tally.losses else "base"
        return f"That is enough to say that you prefer the {better}."
    if missing is None:
        return "Neither is ahead."
    return f"Too close to call: about {counted(missing, 'more vote')} at this rate would decide it."
