"""A held-out row is asked with what was said before it, and nothing is expected where that cannot be asked."""

import json

import pytest

from qlora_space.core.comparison import Question, Turn
from qlora_space.runs.heldout import heldout_question

CALL = {"id": "1", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ([], Question(prompt="Where?", expected="Olm")),
        ([("system", "Be brief.")], Question(prompt="Where?", expected="Olm", system="Be brief.")),
        (
            [("system", "Be brief."), ("user", "Who?"), ("assistant", "Mira.")],
            Question(
                prompt="Where?",
                expected="Olm",
                system="Be brief.",
                history=((Turn(prompt="Who?", answer="Mira."),),),
            ),
        ),
        ([("user", "Who?"), ("user", "Well?")], Question(prompt="Where?")),
        ([("user", "Who?"), ("tool", "Mira.")], Question(prompt="Where?")),
        ([("user", "Who?"), ("calls", "")], Question(prompt="Where?")),
    ],
)
def test_what_a_row_asks(before: list[tuple[str, str]], wanted: Question) -> None:
    turns = [
        {"role": "assistant", "content": "", "calls": [CALL]} if r == "calls" else {"role": r, "content": c}
        for r, c in before
    ]  # fmt: skip
    messages = [*turns, {"role": "user", "content": "Where?"}]
    assert heldout_question(json.dumps({"messages": messages, "expected": "Olm"})) == wanted
