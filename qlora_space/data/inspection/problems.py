"""Findings about a dataset: each code once, with its weight, the rows concerned, an example and a fix."""

from collections import Counter

from qlora_space.core.inspection import Change, Problem
from qlora_space.core.options import Format
from qlora_space.data.documents import Tokenized
from qlora_space.data.inspection.problem_codes import CODES
from qlora_space.data.rows import RowProblem
from qlora_space.data.template.proof import Tokens
from qlora_space.data.template.renderer import Renderer

_FEW_ROWS = 50
_LENGTH_STEP = 64
_ORDER = ("error", "warning", "info")


class Findings:
    """Collects problems row by row."""

    def __init__(
        self,
        looked_at: int,
        num_rows: int,
        max_length: int,
        longest: int,
        format: Format,
        handled: frozenset[str] = frozenset(),
    ) -> None:
        """`longest`: what max_length may be raised to, the base's own limit. `handled`: codes of rows
        that the request leaves out."""
        self._looked_at, self._num_rows = looked_at, num_rows
        self._max_length, self._longest, self._format = max_length, longest, format
        self._handled = handled
        self._rows: Counter[str] = Counter()
        self._messages: dict[str, str] = {}
        self._places: dict[str, str] = {}
        self._changes: dict[str, Change] = {}
        self._digests: set[bytes] = set()
        self._usable = 0
        self._needed_length = 0
        self._shortest_needed = 0

    def add(self, row: Tokenized) -> None:
        """Note what is wrong with one row, if anything."""
        place = row.row.place
        if isinstance(row.outcome, RowProblem):
            self.note(row.outcome.code, row.outcome.message, place)
            return
        if row.digest in self._digests:
            once = Change(field="deduplicate", value="true")
            self.note("duplicate", f"{place} repeats an earlier row.", place, change=once)
        self._digests.add(row.digest)
        self._usable += self._fits(place, row.outcome)

    def is_new(self, digest: bytes) -> bool:
        """Whether no row before had this content."""
        return digest not in self._digests

    def _fits(self, place: str, tokens: Tokens) -> bool:
        # Plain text is cut into pieces, so nothing of it is lost.
        if self._format is Format.TEXT or True not in tokens.trained[self._max_length :]:
            return True
        end = len(tokens.trained) - tokens.trained[::-1].index(True)
        self._needed_length = max(self._needed_length, end)
        if True in tokens.trained[1 : self._max_length]:
            self.note("truncated_answer", f"{place}: the answer loses its end.", place)
            return "truncated_answer" not in self._handled
        needed = tokens.trained.index(True, self._max_length) + 1
        self._shortest_needed = min(self._shortest_needed or needed, needed)
        message = f"{place}: max_length {self._max_length} ends before the answer."
        self.note("all_masked", message, place)
        return False

    def add_template(self, renderer: Renderer) -> None:
        """Note what the template makes of this dataset as a whole."""
        if self._format is Format.TEXT:
            return
        if not renderer.has_own_template:
            message = "The base has no chat template: turns are written as plain text."
            self.note("no_chat_template", message, rows=self._looked_at)
        if renderer.folds_system:
            self.note("system_folded", CODES["system_folded"].what, rows=self._looked_at)
        if renderer.drops_reasoning:
            self.note("drops_reasoning", CODES["drops_reasoning"].what, rows=self._looked_at)
        if not renderer.matches_prompt:
            self.note("prompt_differs", CODES["prompt_differs"].what, rows=self._looked_at)

    def problems(self) -> tuple[Problem, ...]:
        """Errors first, then by the number of rows."""
        if self._needed_length > self._max_length < self._longest:
            rounded = -(-self._needed_length // _LENGTH_STEP) * _LENGTH_STEP
            longer = Change(field="max_length", value=str(min(rounded, self._longest)))
            self._changes |= dict.fromkeys(("all_masked", "truncated_answer"), longer)
        else:
            self._changes["truncated_answer"] = Change(field="drop_truncated", value="true")
        if not self._usable:
            self._note_no_usable_row()
        elif self._num_rows < _FEW_ROWS:
            is_one = self._num_rows == 1
            message = f"There {'is only 1 row' if is_one else f'are only {self._num_rows} rows'}."
            self.note("too_few_rows", message, rows=self._num_rows)
        found = [self._problem(code) for code in self._rows]
        return tuple(sorted(found, key=lambda p: (_ORDER.index(p.severity), -p.rows, p.code)))

    def note(
        self, code: str, message: str, place: str = "", rows: int = 1, change: Change | None = None
    ) -> None:
        """Count rows under a code; message, place and change are those of the first."""
        self._rows[code] += rows
        self._messages.setdefault(code, message)
        self._places.setdefault(code, place)
        if change:
            self._changes.setdefault(code, change)

    def _note_no_usable_row(self) -> None:
        reason = next((code for code, _ in self._rows.most_common() if self._drops(code)), "")
        because = f" {self._messages[reason]}" if reason else ""
        message = f"No row can be trained on.{because}"
        place, change = self._places.get(reason, ""), self._changes.get(reason)
        self.note("no_usable_row", message, place, self._looked_at, change)

    def _fix_of(self, code: str) -> str:
        is_too_short = code == "no_usable_row" and "all_masked" in self._rows
        if is_too_short:
            return f"Set max_length to {self._shortest_needed} or more."
        return CODES[code].fix

    def _drops(self, code: str) -> bool:
        return CODES[code].drops or code in self._handled

    def _problem(self, code: str) -> Problem:
        is_handled = code in self._handled
        severity = "info" if is_handled else CODES[code].severity
        fix = "As you chose, these rows are left out." if is_handled else self._fix_of(code)
        left_out = " These rows are left out." if CODES[code].drops and severity != "info" else ""
        return Problem(
            code=code,
            severity=severity,
            rows=self._rows[code],
            message=self._messages[code],
            fix=fix + left_out,
            place=self._places[code],
            change=None if is_handled else self._changes.get(code),
            drops=self._drops(code),
        )
