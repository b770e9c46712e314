"""Write docs/DATA.md from the tables of formats and findings: `python docs/write_data.py`."""

import json
from pathlib import Path

from qlora_space.data.formats.rules import RULES, Part
from qlora_space.data.inspection.problems import PROBLEM_CODES

PAGE = Path(__file__).with_name("DATA.md")
_HEAD = """# Data

Written by `docs/write_data.py` from the tables that the program itself follows.

## Formats

The format is found from the columns and their values, in this order; `--format` and
`--columns part=column,...` have the last word. Names of columns may be in any case. A part in *italics*
may be absent. Where no name is known, one or two columns of text, or a column of conversations, are
enough: such a guess is told.

"""
_TOOLS = """
Conversations may call tools: a column `tools`, `tool_calls` of answers and turns of the role `tool`, or
ShareGPT's `function_call` and `observation`. Reasoning may stand in `reasoning_content`, `thinking` or
`reasoning` of a turn, or in the answer as `<think>`. Both are written and trained as the base's chat
template writes them; a row with tools whose template cannot write them is left out and told.

Multiple choice (a list of texts, or `{"text": [...], "label": [...]}`) is asked with its choices below the
question and answered with label and text ("B. Rome"); the answer may be a label, a text, or,
where labels are not numbers, a number counted from 0. Two answers with a column that says which is
better, and a text in several languages, are not guessed at: write chosen and rejected, or prompt and completion.

What is trained of a conversation: every answer and the token that ends it. The rendered text and the
mask are proved row by row; a row that cannot be proved is left out and told. Templates run in a process of
their own. One that only asks questions about contents and puts them together is asked once for each order
of turns, and again for every 64th row as a check; rows that would answer a question otherwise go to it too.

## Findings

An error blocks the start; a warning does not; an info is for your knowledge.

| code | severity | what | what to do | left out |
|---|---|---|---|---|
"""


def data_page() -> str:
    """The whole page."""
    return _HEAD + _formats() + _TOOLS + _findings()


def _formats() -> str:
    lines = ["| format | what | parts: columns | a row |", "|---|---|---|---|"]
    for rule in RULES:
        parts = "<br>".join(map(_part, rule.parts))
        row = json.dumps(json.loads(rule.example), ensure_ascii=False)
        lines.append(f"| `{rule.format.value}` | {rule.what} | {parts} | `{row}` |")
    return "\n".join(lines) + "\n"


def _part(part: Part) -> str:
    name = part.name if part.is_required else f"*{part.name}*"
    return f"{name}: {', '.join(part.columns)}"


def _findings() -> str:
    rows = (
        f"| `{name}` | {code.severity} | {code.what} | {code.fix} | {'yes' if code.drops else ''} |"
        for name, code in PROBLEM_CODES.items()
    )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(data_page(), "utf-8")
