"""Writes docs/DATA.md from the tables of formats and findings: `python docs/write_data.py`."""

import json
from pathlib import Path

from qlora_space.data.formats.rules import RULES, Part
from qlora_space.data.inspection.problems import PROBLEM_CODES

PAGE = Path(__file__).with_name("DATA.md")
_HEAD = """# Data

Written by `docs/write_data.py` from the tables that the program itself follows.

## Formats

The format is detected from the columns and their values, in this order; `--format` and
`--columns part=column,...` take precedence. Names of columns may be in any case. A part in *italics* may
be absent. If no name is known, one or two columns of text, or a column of conversations, are enough: such
a guess is reported.

"""
_TOOLS = """
Conversations may call tools: a column `tools`, `tool_calls` of answers and turns of the role `tool`, or
ShareGPT's `function_call` and `observation`. Reasoning may stand in `reasoning_content`, `thinking` or
`reasoning` of a turn, or in the answer as `<think>`. Both are written and trained as the base's chat
template writes them; a row with tools whose template does not support them is left out and reported.

Multiple choice (a list of texts, or `{"text": [...], "label": [...]}`) becomes a question with its choices
below it and an answer of label and text ("B. Rome"); the answer may be a label, a text, or, where labels
are not numbers, an index from 0. Two answers with a column that says which is better, and a text in
several languages, are not guessed at: write chosen and rejected, or prompt and completion.

Trained of a conversation are every answer and the token that ends it. The rendered text and the loss mask
are proved row by row; a row that cannot be proved is left out and reported. Chat templates run in a process
of their own. A template that only asks about contents and joins texts is run once for each order of turns,
and again for every 64th row as a check; it is also run for rows whose contents would answer differently.

## Findings

An error blocks the start; a warning does not; an info is only for your information.

| code | severity | what | what to do | left out |
|---|---|---|---|---|
"""


def data_page() -> str:
    """The text of docs/DATA.md."""
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
