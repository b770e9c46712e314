"""The table of problem codes, and the findings about a dataset: each code once, with rows, example and fix.

docs/DATA.md lists `PROBLEM_CODES`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_space.core.inspection import Change, Problem
from qlora_space.core.options import Format
from qlora_space.data.rows import SAVE_AS_UTF8, RowProblem
from qlora_space.data.template.loss_mask import Tokens
from qlora_space.data.template.renderer import Renderer
from qlora_space.data.tokenize_rows import Tokenized

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class ProblemCode:
    """What is wrong and how to fix it. `drops`: the rows are left out of training automatically."""

    what: str
    fix: str
    severity: Severity = "warning"
    drops: bool = False


PROBLEM_CODES: dict[str, ProblemCode] = {
    "unknown_format": ProblemCode(
        "The format of the rows is not known.",
        "Say which column plays which part, or choose another format.",
        "error",
    ),
    "no_usable_row": ProblemCode(
        "No row can be trained on.",
        "Choose another format, other columns or another base.",
        "error",
    ),
    "bad_row": ProblemCode(
        "A row cannot be read.", "Correct the rows, or train without them.", drops=True
    ),
    "files_left_out": ProblemCode(
        "Files hold other columns than the rest of the folder.",
        "Train on them on their own, or give them the same columns.",
    ),
    "files_about_data": ProblemCode("Files are about the data.", "Nothing to do.", "info"),
    "sheets_left_out": ProblemCode(
        "A workbook has several sheets.", "Move the sheet to the front, or save it as CSV."
    ),
    "no_header": ProblemCode(
        "The first row of a table holds data, not the names of the columns.",
        "Check the column mapping, or write the names into a first row.",
    ),
    "joined_messages": ProblemCode(
        "Messages that answer each other are joined into conversations.",
        "Nothing to do: each answer is learned once, and is context where another one follows its question.",
        "info",
    ),
    "row_a_line": ProblemCode(
        "Each line of a text file without blank lines is a row.",
        "To have it read as one document, call it .md or put a blank line between paragraphs.",
        "info",
    ),
    "no_held_out_row": ProblemCode(
        "The evaluation split has no row that can be used.",
        "Hold out some training rows instead, or choose another split.",
        "error",
    ),
    "not_utf8": ProblemCode("A row is not UTF-8.", SAVE_AS_UTF8, drops=True),
    "wrong_encoding": ProblemCode(
        "Letters were garbled by an earlier conversion (Ã© for é).",
        "Export the data again as UTF-8: the model learns to write what it sees.",
    ),
    "not_text": ProblemCode(
        "A row holds an image, audio or video.", "Only text is trained on.", drops=True
    ),
    "mixed_types": ProblemCode(
        "A column holds values of several types.",
        "Make them all of one type, or map another column.",
    ),
    "empty_answer": ProblemCode("An answer is empty.", "Fill in the answers.", drops=True),
    "empty_prompt": ProblemCode(
        "A question is empty.", "Fill in the questions, or choose the format text.", drops=True
    ),
    "role_order": ProblemCode(
        "Turns are in an order that cannot be trained on.",
        "Let questions and answers alternate, beginning with a question.",
        drops=True,
    ),
    "bad_tool_call": ProblemCode(
        "A tool call cannot be read.",
        "Write calls as JSON with name and arguments.",
        drops=True,
    ),
    "no_tools": ProblemCode(
        "The base's chat template does not support tools.",
        "Choose a base whose chat template supports tools.",
        drops=True,
    ),
    "drops_reasoning": ProblemCode(
        "The base's chat template leaves reasoning out.",
        "Choose a base that reasons, or put the reasoning into the answer.",
    ),
    "earlier_reasoning": ProblemCode(
        "The base's chat template leaves out the reasoning of earlier answers.",
        "End a row at each answer whose reasoning is to be learned, or choose a base that keeps it.",
    ),
    "chosen_only": ProblemCode(
        "Of two answers only the chosen one is trained on.", "Nothing to do.", "info"
    ),
    "same_answers": ProblemCode(
        "Chosen and rejected are the same.", "Let them differ; nobody prefers either.", drops=True
    ),
    "unwanted_answer": ProblemCode(
        "The answer is labelled as undesirable.", "Nothing to do.", "info", drops=True
    ),
    "special_token": ProblemCode(
        "A text contains a special token of the model.",
        "Take the model's special tokens out of the text.",
        drops=True,
    ),
    "template_refused": ProblemCode(
        "The chat template refuses a conversation.",
        "Choose a base with another chat template.",
        drops=True,
    ),
    "unproved_mask": ProblemCode(
        "It is not certain which tokens are answers.",
        "Choose another base, or leave the rows out.",
        drops=True,
    ),
    "token_beyond": ProblemCode(
        "The tokenizer makes a token that the base has no embedding for.",
        "Choose a base whose tokenizer fits, or take such tokens out of the rows.",
        drops=True,
    ),
    "all_masked": ProblemCode(
        "max_length ends before the answer begins.",
        "Raise max_length: no token of these answers is within it.",
        drops=True,
    ),
    "truncated_answer": ProblemCode(
        "max_length cuts an answer.", "Raise max_length to keep the end of every answer."
    ),
    "duplicate": ProblemCode(
        "A row occurs twice.", "Train on each row once, or these count double."
    ),
    "left_out": ProblemCode(
        "Rows are left out, as you chose.", "Nothing to do.", "info", drops=True
    ),
    "near_duplicate": ProblemCode(
        "A row is nearly another one.",
        "Keep one of each: the others teach little, and held-out rows should be new to the model.",
    ),
    "leak": ProblemCode(
        "A held-out row is also trained on.",
        "It is taken out of the held-out rows; hold out some training rows instead to measure on new ones.",
        drops=True,
    ),
    "nothing_held_out": ProblemCode(
        "Every held-out row is also trained on.",
        "Hold out some training rows instead, or nothing shows what was learned.",
        "error",
    ),
    "near_leak": ProblemCode(
        "A held-out row is nearly one that is trained on.",
        "Take these rows out of one split, or hold out some training rows: the evaluation "
        "looks better than it is.",
    ),
    "constant_answer": ProblemCode(
        "More than half of the answers are the same.",
        "Check the column of answers: the model learns to always give this one.",
    ),
    "guessed_columns": ProblemCode(
        "Which column plays which part is a guess.",
        "Confirm the columns, or map others.",
        "error",
    ),
    "linked_rows": ProblemCode(
        "Rows answer other rows.",
        "Join the messages of a conversation into one row, or confirm that each row stands alone.",
        "error",
    ),
    "linked_rows_alone": ProblemCode(
        "Rows answer other rows, and each is learned alone, as you chose.",
        "Join the messages of a conversation into one row to keep what came before.",
    ),
    "instruction_before": ProblemCode(
        "An instruction stands before each prompt.",
        "Change it with the option instruction; use the same one with the trained model.",
        "info",
    ),
    "unread_column": ProblemCode(
        "A column that seems to matter is not read.",
        "Map it to a part of the format, or leave it out on purpose.",
    ),
    "formatted_chat": ProblemCode(
        "Texts are chats that were written out for a chat template.",
        "Use the conversations that they were made of: as text, questions are learned like answers.",
    ),
    "unread_text": ProblemCode(
        "A column of text is not read.", "Map it if it is to be learned.", "info"
    ),
    "not_trained": ProblemCode(
        "The data marks a row as not to be learned.", "Nothing to do.", "info", drops=True
    ),
    "marked_answers": ProblemCode(
        "The data marks answers as not to be learned: they are context only.",
        "Nothing to do.",
        "info",
    ),
    "unclear_weight": ProblemCode(
        "A mark of what is learned cannot be honoured.",
        "Write 0 or 1 for each turn, or take the marks out.",
        drops=True,
    ),
    "row_weights": ProblemCode(
        "Rows have weights that cannot be trained with.",
        "Repeat rows that count more, or confirm that all count alike.",
        "error",
    ),
    "schema_nulls": ProblemCode(
        "The table gives every tool call the arguments of all tools, as null: these are left out.",
        "Nothing to do.",
        "info",
    ),
    "unopened_reasoning": ProblemCode(
        "Reasoning ends with </think> but never begins.",
        "Put <think> in front of it, unless the base's template writes it into the prompt.",
    ),
    "too_few_rows": ProblemCode(
        "There are few rows.", "Add rows; a few hundred good ones do for most tasks."
    ),
    "too_many_epochs": ProblemCode(
        "There are too few rows for so many epochs.",
        "Take fewer epochs, or the model learns the rows by heart.",
    ),
    "no_chat_template": ProblemCode(
        "The base has no chat template.", "Choose an instruct model if you want a chat."
    ),
    "system_folded": ProblemCode(
        "The template has no system turn: it goes before the first question.",
        "Nothing to do.",
        "info",
    ),
    "prompt_differs": ProblemCode(
        "The chat template prompts for an answer in another way than it writes one.",
        "When you use the model elsewhere, use the chat template saved with it.",
    ),
}


def problem_of(found: RowProblem) -> Problem:
    """What is wrong with no row in particular."""
    code = PROBLEM_CODES[found.code]
    return Problem(
        code=found.code, severity=code.severity, rows=1, message=found.message, fix=code.fix
    )


_FEW_ROWS = 50
_LENGTH_STEP = 64
_ORDER = ("error", "warning", "info")


class Findings:
    """Collects problems row by row."""

    def __init__(
        self,
        rows_inspected: int,
        num_rows: int,
        max_length: int,
        longest_max_length: int,
        format: Format,
        handled: frozenset[str] = frozenset(),
    ) -> None:
        """`longest_max_length`: what max_length may be raised to, the base's limit. `handled`: codes of
        problems that the request takes care of."""
        self._rows_inspected, self._num_rows = rows_inspected, num_rows
        self._max_length, self._format = max_length, format
        self._longest_max_length = longest_max_length
        self._handled = handled
        self._rows: Counter[str] = Counter()
        self._messages: dict[str, str] = {}
        self._locations: dict[str, str] = {}
        self._changes: dict[str, Change] = {}
        self._digests: set[bytes] = set()
        self._usable = 0
        self._text_pieces = 0
        # Of the rows that max_length cuts: where their answers begin and end, in tokens.
        self._begins: list[int] = []
        self._ends: list[int] = []

    def add_rows(self, rows: Iterable[Tokenized], renderer: Renderer) -> None:
        """Note what is wrong with each row, and what the template does with them as a whole."""
        for row in rows:
            self._add(row)
        self._add_template(renderer)

    def _add(self, row: Tokenized) -> None:
        location = row.row.location
        if isinstance(row.outcome, RowProblem):
            self.note(row.outcome.code, row.outcome.message, location)
            return
        if row.digest in self._digests:
            once = Change(field="deduplicate", value="true")
            self.note("duplicate", f"{location} repeats an earlier row.", location, change=once)
        self._digests.add(row.digest)
        self._usable += self._fits(location, row.outcome)

    def add_notes(self, notes: Iterable[RowProblem]) -> None:
        """What is to be known of how the files are read."""
        for each in notes:
            self.note(each.code, each.message)

    def is_new(self, digest: bytes) -> bool:
        """Whether no row before had this content."""
        return digest not in self._digests

    def _fits(self, location: str, tokens: Tokens) -> bool:
        # Plain text is cut into pieces, so nothing of it is lost.
        if self._format is Format.TEXT:
            self._text_pieces += -(-len(tokens.input_ids) // self._max_length)
            return True
        if True not in tokens.trained[self._max_length :]:
            return True
        self._ends.append(len(tokens.trained) - tokens.trained[::-1].index(True))
        if True in tokens.trained[1 : self._max_length]:
            self.note(
                "truncated_answer", f"{location}: the end of the answer is cut off.", location
            )
            return "truncated_answer" not in self._handled
        self._begins.append(tokens.trained.index(True, self._max_length) + 1)
        message = f"{location}: max_length {self._max_length} ends before the answer."
        self.note("all_masked", message, location)
        return False

    def _add_template(self, renderer: Renderer) -> None:
        if self._format is Format.TEXT:
            return
        if not renderer.has_own_template:
            message = "The base has no chat template: turns are written as plain text."
            self.note("no_chat_template", message, rows=self._rows_inspected)
        if renderer.folds_system:
            self.note(
                "system_folded", PROBLEM_CODES["system_folded"].what, rows=self._rows_inspected
            )
        if renderer.drops_reasoning:
            self.note(
                "drops_reasoning", PROBLEM_CODES["drops_reasoning"].what, rows=self._rows_inspected
            )
        if not renderer.matches_prompt:
            self.note(
                "prompt_differs", PROBLEM_CODES["prompt_differs"].what, rows=self._rows_inspected
            )

    def problems(self) -> tuple[Problem, ...]:
        """Errors first, then by the number of rows."""
        self._offer_lengths()
        if not self._usable:
            self._note_no_usable_row()
        else:
            self._note_few_rows()
        found = [self._problem(code) for code in self._rows if code not in self._handled]
        handled = [code for code in self._rows if code in self._handled]
        if handled:
            found.append(self._left_out(handled))
        return tuple(sorted(found, key=lambda p: (_ORDER.index(p.severity), -p.rows, p.code)))

    def _offer_lengths(self) -> None:
        """Buttons for answers beyond max_length: only those after which no such row is left."""
        longest, cut = self._longest_max_length, self._rows["truncated_answer"]
        rounded = -(-max(self._ends, default=0) // _LENGTH_STEP) * _LENGTH_STEP
        longer = Change(field="max_length", value=str(min(rounded, longest)))
        if self._ends and max(self._ends) <= longest:
            self._changes |= dict.fromkeys(("all_masked", "truncated_answer"), longer)
            return
        if max(self._begins, default=longest + 1) <= longest:
            self._changes["all_masked"] = longer
        if self._usable > cut > 0:
            self._changes["truncated_answer"] = Change(field="drop_truncated", value="true")

    def _left_out(self, codes: Sequence[str]) -> Problem:
        """What the request takes care of, as one finding."""
        rows = sum(self._rows[code] for code in codes)
        return Problem(
            code="left_out",
            severity="info",
            rows=rows,
            message=f"As you chose, rows are left out. {self._messages[codes[0]]}",
            fix=PROBLEM_CODES["left_out"].fix,
            place=self._locations[codes[0]],
            drops=True,
        )

    def _note_few_rows(self) -> None:
        count = max(self._num_rows, self._text_pieces)
        if count >= _FEW_ROWS:
            return
        one, several = ("piece of text", "pieces of text") if self._text_pieces else ("row", "rows")
        message = f"There {f'is only 1 {one}' if count == 1 else f'are only {count} {several}'}."
        self.note("too_few_rows", message, rows=count)

    def note(
        self,
        code: str,
        message: str,
        location: str = "",
        rows: int = 1,
        change: Change | None = None,
    ) -> None:
        """Count rows under a code; message, location and change are those of the first."""
        self._rows[code] += rows
        self._messages.setdefault(code, message)
        self._locations.setdefault(code, location)
        if change:
            self._changes.setdefault(code, change)

    def _note_no_usable_row(self) -> None:
        reason = next((code for code, _ in self._rows.most_common() if self._drops(code)), "")
        because = f" {self._messages[reason]}" if reason else ""
        message = f"No row can be trained on.{because}"
        location, change = self._locations.get(reason, ""), self._changes.get(reason)
        self.note("no_usable_row", message, location, self._rows_inspected, change)

    def _fix_of(self, code: str) -> str:
        longest, shortest = self._longest_max_length, min(self._begins, default=0)
        if code == "no_usable_row" and 0 < shortest <= longest:
            return f"Set max_length to {shortest} or more."
        if code in ("all_masked", "truncated_answer") and max(self._ends) > longest:
            most = f"{self._longest_max_length:,} tokens"
            return f"Shorten the rows, or choose a base that reads more than {most}."
        return PROBLEM_CODES[code].fix

    def _drops(self, code: str) -> bool:
        return PROBLEM_CODES[code].drops or code in self._handled

    def _problem(self, code: str) -> Problem:
        severity = PROBLEM_CODES[code].severity
        left_out = (
            " These rows are left out." if PROBLEM_CODES[code].drops and severity != "info" else ""
        )
        return Problem(
            code=code,
            severity=severity,
            rows=self._rows[code],
            message=self._messages[code],
            fix=self._fix_of(code) + left_out,
            place=self._locations[code],
            change=self._changes.get(code),
            drops=self._drops(code),
        )
