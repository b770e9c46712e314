"""Held-out rows as questions: what is asked, what was said before, and the answer that the data gives to just that."""

import json
from typing import Any

from qlora_space.core.comparison import Question, Turn


def heldout_question(line: str) -> Question:
    """Of a line of data/eval_examples.jsonl. A conversation with tools is asked its last turn alone, without the
    answer, which is not one to that."""
    values = json.loads(line)
    *before, last = values["messages"]
    system = before[0]["content"] if before and before[0]["role"] == "system" else ""
    turns = _turns(before[1:] if system else before)
    if turns is None:
        return Question(prompt=last["content"], system=system)
    history = (turns,) if turns else ()
    return Question(
        prompt=last["content"], expected=values["expected"], system=system, history=history
    )


def _turns(messages: list[dict[str, Any]]) -> tuple[Turn, ...] | None:
    """Questions and answers in turn; None for anything else."""
    roles = [message["role"] for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2) or any("calls" in m for m in messages):
        return None
    texts = [message["content"] for message in messages]
    return tuple(Turn(prompt=p, answer=a) for p, a in zip(texts[::2], texts[1::2], strict=True))
