"""Writes docs/DATA.md from the tables of formats and findings: `python docs/write_data.py`."""

import json
from pathlib import Path

from qlora_space.core.file_kinds import READABLE
from qlora_space.data.formats.rules import RULES, Part
from qlora_space.data.inspection.problems import PROBLEM_CODES

PAGE = Path(__file__).with_name("DATA.md")
_HEAD = f"""# Data

Written by `docs/write_data.py` from the tables that the program itself follows.

## Files

A Hub dataset, or files of these kinds: {READABLE}; or a folder of them.

- **JSON** in any layout: a row a line, an array, objects one after the other, one object that holds the rows. What
  Python prints for a row ({{'text': None}}) is read, too.
- **CSV, TSV, Excel**: the first row names the columns. If it is like the rows below it (a number over numbers, a
  sentence over sentences, a value that comes again), it is data, the columns are `column_1`, `column_2`, ..., and
  that is a finding. Of a workbook the first sheet with rows is read; others are named in a finding.
- **Text, Markdown, HTML**: a file is one document with one end token at its end. A long one is cut into pieces of
  nearly `max_length` tokens; `--text-overlap-tokens` has each begin with the end of the one before, as context that
  is not learned twice. Of fewer than 20 documents the last pieces of each are held out, of more whole documents. A
  `.txt` without any blank line whose lines are no prose of one width is a list: each line is a row, and that is said.
  Of a page the text is read, without scripts and styles.
- **Folders and zip files**: files of other columns than the training files, and those that are about the data
  (README, LICENSE, dataset_info.json), are left out and named. A split is named by a file's whole name
  (`train-00000-of-00002`, `squad_test`, `dev_set`) or its folder's, not by any word in it (`eval_results`).
  An evaluation split without a row that can be used blocks the start.
- **Encodings**: UTF-8, or UTF-16 with a byte order mark. A row that is neither is left out and named.

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

Conversations may also be pairs of texts, `[[question, answer], ...]` or `[[role, text], ...]`, in a column
with the name of a conversation. Rows that are single messages (an id, parent_id, role, text) are joined where a
file of at most 64 MiB holds whole trees: each way from a first message to a last one is a conversation, and what
several share is learned once. Multiple choice (a list of texts, `{"text": [...], "label": [...]}`, or
columns A, B, C, D, mapped as choices=A + B + C + D) becomes a question with its choices below it and an
answer of label and text ("B. Rome"); the answer may be a label, a text, or, where labels
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
