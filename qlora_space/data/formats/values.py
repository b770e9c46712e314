"""What the columns of a sample hold: conversations, texts, numbers, labels, marks, or something else."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_space.data.formats.choices import names_a_choice
from qlora_space.data.formats.columns import JOINED, inner_paths, value_at
from qlora_space.data.formats.literals import is_literal_like, parse_literal
from qlora_space.data.formats.marks import are_marks
from qlora_space.data.formats.rules import ABOUT_A_ROW, ANSWERS, QUESTIONS, Shape
from qlora_space.data.formats.tool_calls import is_calls
from qlora_space.data.formats.turns import (
    first_answer,
    is_answer,
    is_lettered,
    is_pairs,
    parse_turns,
    turns_of_text_pairs,
    unknown_role,
)

_NUMBER = re.compile(r"\s*[-+]?\d[\d.,]*(?:[eE][-+]?\d+)?\s*")
_LOOKS_LIKE_TURNS = re.compile(r"""['"](?:role|from|sender)['"]\s*:""")
_PROBED_CHARS = 2000
_LANGUAGE = re.compile(r"[a-z]{2,3}([_-]\w{2,4})?")
_TOKEN_IDS = ("input_ids", "token_ids", "tokens", "ids")
_MOST_LABEL_CHARS = 40
_ROWS_OF_NO_CHANCE = 10
_MOST_PATHS = 200
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


class Values:
    """The columns and the shapes of the sample's values in them, also of values within objects."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        self.columns = tuple(columns)
        self._by_lower = {column.lower().strip(): column for column in reversed(columns)}
        self._cells = {column: [row.get(column) for row in rows] for column in columns}
        self._shapes = {column: _shape_of(cells) for column, cells in self._cells.items()}
        self._paths = self._shapes_of_paths(rows)

    def _shapes_of_paths(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        objects = [c for c in self.columns if self._shapes[c] in ("other", "wrapped")]
        inner = (path for c in objects for cell in self._cells[c] for path in inner_paths(c, cell))
        # Objects with their ids for keys have new paths in every row.
        paths = dict.fromkeys(itertools.islice(inner, _MOST_PATHS * len(rows)))
        paths = dict.fromkeys(itertools.islice(paths, _MOST_PATHS))
        return {path: _shape_of([value_at(row, path) for row in rows]) for path in paths}

    def named(self, name: str) -> str | None:
        return self._by_lower.get(name)

    def path_named(self, name: str) -> str | None:
        """A value of this name within an object."""
        ends = (path for path in self._paths if path.rpartition(".")[2].lower() == name)
        return next((path for path in ends if self._paths[path] != "empty"), None)

    def fits(self, column: str, shape: Shape) -> bool:
        found = self._shapes[column]
        match shape:
            case "any":
                return True
            case "marks":
                return are_marks(self._cells[column])
            case "mark":
                return found in ("flag", "number") and are_marks(self._cells[column])
            case "answer":
                return found not in ("other", "flag", "unparsed", "text pairs")
            case "either":
                return found not in ("other", "flag", "answers", "unparsed", "text pairs")
            case "conversation":
                return found in ("messages", "turns")
            case "turns":
                return found in ("turns", "pairs", "text pairs")
            case "text":
                return found in ("text", "empty", "number")
            case "choices":
                return found == "answers"
        return found == shape

    def is_conversation(self, column: str) -> bool:
        return self._shapes.get(column) in ("messages", "turns")

    def of_shape(self, shape: str) -> list[str]:
        return [column for column in self.columns if self._shapes[column] == shape]

    def paths_of_shape(self, shape: str) -> list[str]:
        return [path for path, found in self._paths.items() if found == shape]

    def is_empty(self, column: str) -> bool:
        return self._shapes[column] == "empty"

    def is_structured(self, column: str) -> bool:
        """Whether it holds lists or objects, also where a CSV file has them as text."""
        if self._shapes[column] not in ("text", "empty", "number", "flag"):
            return True
        cells = [cell for cell in self._cells[column] if cell not in (None, "")]
        return bool(cells) and all(isinstance(cell, str) and _is_written(cell) for cell in cells)

    def structure_in(self, column: str) -> str | None:
        """What the texts of a column are instead of text: JSON, or a table."""
        cells = [cell for cell in self._cells[column] if isinstance(cell, str) and cell.strip()]
        if cells and all(map(_is_written, cells)):
            return "lists or objects written as text"
        tabs = {cell.strip().count("\t") for cell in cells}
        is_table = len(cells) > 2 and len(tabs) == 1 and tabs != {0}
        return "the cells of a table, with tabs between them" if is_table else None

    def texts(self) -> list[str]:
        """Columns of text that are not about the row, such as its id."""
        return [column for column in self.of_shape("text") if not ABOUT_A_ROW.search(column)]

    def is_repeated(self, column: str) -> bool:
        """Whether its values are few and short, as labels are."""
        cells = [str(cell).strip() for cell in self._cells[column] if cell not in (None, "")]
        is_short = all(len(cell) <= _MOST_LABEL_CHARS for cell in cells)
        is_one = all(not isinstance(cell, list | dict) for cell in self._cells[column])
        return bool(cells) and is_one and is_short and len(set(cells)) <= max(2, len(cells) // 2)

    def is_constant(self, column: str) -> bool:
        """Whether a text is the same in every row, of so many that this is no chance."""
        cells = self._cells.get(column, [])
        return (
            len(cells) >= _ROWS_OF_NO_CHANCE
            and isinstance(cells[0], str)
            and all(c == cells[0] for c in cells)
        )

    def has_right_choices(self, answers: str, choices: Sequence[str]) -> bool:
        """Whether the answers are among the choices of their rows, but for one in ten."""
        rows = zip(self._cells.get(answers, []), *(self._cells[c] for c in choices), strict=False)
        named = [
            names_a_choice(answer, dict(zip(choices, cells, strict=True)))
            for answer, *cells in rows
        ]
        return bool(named) and 10 * sum(named) >= 9 * len(named)

    def counts_from_one(self, answers: str | None, choices: str | None) -> bool:
        """Whether numbers of choices reach as many as there are, and never 0."""
        if answers is None or choices is None:
            return False
        cells = self._cells.get(answers, [])
        numbers = [cell for cell in cells if isinstance(cell, int)]
        are_numbers = len(numbers) == len(cells)
        sizes = [len(cell) for cell in self._cells.get(choices, []) if isinstance(cell, list)]
        columns = choices.split(JOINED)
        if len(columns) > 1 and not columns[0][-1].isdecimal():
            sizes = [len(columns)]
        return bool(are_numbers and sizes) and min(numbers) >= 1 and max(numbers) == max(sizes)

    def translation(self) -> tuple[str, list[str]] | None:
        """A column of {"en": "cheese", "de": "Käse"}, and the languages."""
        for column in self.of_shape("other"):
            cells = [cell for cell in self._cells[column] if cell]
            if cells and all(map(_is_translation, cells)):
                return column, list(cells[0])
        return None

    def token_ids(self) -> str | None:
        """A column of token ids."""
        for column in filter(None, map(self.named, _TOKEN_IDS)):
            cells = [cell for cell in self._cells[column] if cell]
            if cells and all(isinstance(c, list) and isinstance(c[0], int) for c in cells):
                return column
        return None

    def answer_of_no_text(self) -> str | None:
        """A column named like an answer beside one named like a question, if it is not text."""
        named = [column for column in map(self.named, ANSWERS) if column]
        unread = [column for column in named if not self.fits(column, "answer")]
        return unread[0] if unread and any(map(self.named, QUESTIONS)) else None

    def unread_conversation(self) -> tuple[str, str] | None:
        """Why a column that looks like a conversation is none, and what to do; None if there is none."""
        for column in self.of_shape("unparsed"):
            return (
                f"The column “{column}” holds conversations as text that is neither JSON nor Python.",
                "Write them as JSON, for example with json.dumps.",
            )
        shapes = {**self._shapes, **self._paths}
        for path in (path for path, shape in shapes.items() if shape in ("questions", "wrapped")):
            role = self._unknown_role(path)
            if role is not None:
                return (
                    f"The column “{path}” holds turns by {role[:40]!r}, which is no known role.",
                    "Rename the roles to system, user, assistant and tool.",
                )
            what = f"The column “{path}” holds questions without answers."
            return what, "Add the answers to the turns."
        return None

    def _unknown_role(self, path: str) -> str | None:
        name, _, rest = path.partition(".")
        cells = self._cells.get(path) or [
            value_at({"": cell}, f".{rest}") for cell in self._cells[name]
        ]
        roles = (unknown_role(parse_turns(cell)) for cell in cells)
        return next((role for role in roles if role is not None), None)


def words_of(column: str) -> set[str]:
    """{"sql", "prompt"} of sql_prompt and of sqlPrompt."""
    return {word.lower() for word in _WORDS.findall(column)}


def listed(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(column[:60]) for column in columns[:12])
    return shown + (f" and {len(columns) - 12} more" if len(columns) > 12 else "") or "none"


def _shape_of(values: Sequence[Any]) -> str:
    """That of most values: OpenAI messages, ShareGPT turns, text, empty, or something else."""
    kinds = [kind for kind in map(_kind, values) if kind != "empty"]
    return max(sorted(set(kinds)), key=kinds.count) if kinds else "empty"


def _kind(value: Any) -> str:
    if isinstance(value, dict) and parse_turns(value.get("messages")):
        return "wrapped"
    if is_pairs(value):
        return "pairs"
    turns = parse_turns(value)
    if turns:
        if not any(is_answer(turn) for turn in turns):
            return "questions"
        return "messages" if any("from" not in turn for turn in turns) else "turns"
    if value is None or value == "" or value == []:
        return "empty"
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")):
        return "flag"
    if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        return "number"
    if is_calls(value) or first_answer(value) is not None or is_lettered(value):
        return "answers"
    if any(map(is_answer, turns_of_text_pairs(value))):
        return "text pairs"
    if not isinstance(value, str):
        return "other"
    is_unparsed = is_literal_like(value) and _LOOKS_LIKE_TURNS.search(value[:_PROBED_CHARS])
    return "unparsed" if is_unparsed else "text"


def _is_written(text: str) -> bool:
    if not is_literal_like(text):
        return False
    try:
        return isinstance(parse_literal(text), list | dict)
    except ValueError:
        return False


def _is_translation(cell: Any) -> bool:
    is_dict = isinstance(cell, dict) and len(cell) > 1
    return is_dict and all(
        _LANGUAGE.fullmatch(key) and isinstance(text, str) for key, text in cell.items()
    )
