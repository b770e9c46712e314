"""Findings about a dataset: each code once, with its weight, the rows concerned and what to do."""

from collections import Counter
from typing import Literal

from qlora_space.data.documents import Tokenized
from qlora_space.data.proof import Tokens
from qlora_space.data.rows import RowProblem
from qlora_space.data.template import Renderer
from qlora_space.inspection import Problem
from qlora_space.request import Format

_FEW_ROWS = 50
_FIXES = {
    "bad_row": "Correct the rows, or train without them: they are left out.",
    "not_utf8": "Save the file as UTF-8; these rows are left out.",
    "not_text": "Only text is trained on; these rows are left out.",
    "tool_turn": "Conversations that call tools are left out.",
    "empty_answer": "Fill in the answers; these rows are left out.",
    "empty_prompt": "Fill in the questions, or choose the format text; these rows are left out.",
    "role_order": "Let questions and answers alternate, beginning with a question.",
    "template_refused": "Choose a base with another chat template.",
    "unproved_mask": "These rows are left out: it is not certain which of their tokens are answers.",
    "special_token": "Take the model's special tokens out of the text; these rows are left out.",
    "all_masked": "Raise max_length: no token of these answers is within it.",
    "truncated_answer": "Raise max_length to keep the end of every answer.",
    "duplicate": "Take the repeated rows out, or they count double.",
    "too_few_rows": "Add rows; a few hundred good ones are enough for most tasks.",
    "no_usable_row": "Choose another format, other columns or another base.",
    "no_chat_template": "Choose an instruct model if you want a chat.",
    "system_folded": "Nothing to do.",
    "prompt_differs": "When you use the model elsewhere, take the chat template saved with it.",
}
_Severity = Literal["error", "warning", "info"]


class Findings:
    """Collects problems row by row."""

    def __init__(self, looked_at: int, num_rows: int, max_length: int, format: Format) -> None:
        self._looked_at, self._num_rows = looked_at, num_rows
        self._max_length, self._format = max_length, format
        self._rows: Counter[str] = Counter()
        self._messages: dict[str, str] = {}
        self._severity: dict[str, _Severity] = {}
        self._digests: set[bytes] = set()
        self._usable = 0
        self._shortest_needed = 0
        self._fixes = dict(_FIXES)

    def add(self, row: Tokenized) -> None:
        """Note what is wrong with one row, if anything."""
        if isinstance(row.outcome, RowProblem):
            self._note(row.outcome.code, row.outcome.message)
            return
        if row.digest in self._digests:
            self._note("duplicate", f"{row.row.place} repeats an earlier row.")
        self._digests.add(row.digest)
        self._usable += self._fits(row.row.place, row.outcome)

    def _fits(self, place: str, tokens: Tokens) -> bool:
        # Plain text is cut into pieces, so nothing of it is lost.
        if self._format is Format.TEXT or True not in tokens.trained[self._max_length :]:
            return True
        if True in tokens.trained[1 : self._max_length]:
            self._note("truncated_answer", f"{place}: the answer loses its end.")
            return True
        needed = tokens.trained.index(True, self._max_length) + 1
        self._shortest_needed = min(self._shortest_needed or needed, needed)
        self._note("all_masked", f"{place}: max_length {self._max_length} ends before the answer.")
        return False

    def add_template(self, renderer: Renderer) -> None:
        """Note what the template makes of this dataset as a whole."""
        if self._format is Format.TEXT:
            return
        if not renderer.has_own_template:
            message = "The base has no chat template: turns are written as plain text."
            self._note("no_chat_template", message, self._looked_at)
        if renderer.folds_system:
            message = "The template has no system turn: it goes in front of the first question."
            self._note("system_folded", message, self._looked_at, "info")
        if not renderer.matches_prompt:
            message = "The template asks for an answer in another way than it shows one."
            self._note("prompt_differs", message, self._looked_at)

    def problems(self) -> tuple[Problem, ...]:
        """Errors first, then by the number of rows."""
        if not self._usable:
            reason = self._rows.most_common(1)
            because = f" {self._messages[reason[0][0]]}" if reason else ""
            message = f"No row can be trained on.{because}"
            self._note("no_usable_row", message, self._looked_at, "error")
            if reason and reason[0][0] == "all_masked":
                self._fixes["no_usable_row"] = f"Set max_length to {self._shortest_needed} or more."
        elif self._num_rows < _FEW_ROWS:
            is_one = self._num_rows == 1
            message = f"There {'is only 1 row' if is_one else f'are only {self._num_rows} rows'}."
            self._note("too_few_rows", message, self._num_rows)
        found = [self._problem(code) for code in self._rows]
        order = ("error", "warning", "info")
        return tuple(sorted(found, key=lambda p: (order.index(p.severity), -p.rows, p.code)))

    def _note(
        self, code: str, message: str, rows: int = 1, severity: _Severity = "warning"
    ) -> None:
        self._rows[code] += rows
        self._messages.setdefault(code, message)
        self._severity[code] = severity

    def _problem(self, code: str) -> Problem:
        return Problem(
            code=code,
            severity=self._severity[code],
            rows=self._rows[code],
            message=self._messages[code],
            fix=self._fixes[code],
        )
