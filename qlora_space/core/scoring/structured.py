"""Answers that a program reads: JSON, calls of functions, code."""

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from qlora_space.core.bounded_json import is_deeper_than
from qlora_space.core.scoring.text import MAX_CHARS, bounded, fenced

_MAX_DEPTH = 60
_MAX_DIGITS = 40
_MAX_CALLS = 50
_WRITTEN_CALL = re.compile(r"^[ \t]*([A-Za-z_][\w.-]{0,120})\((\{.*\})\)[ \t]*$", re.MULTILINE)
_BRACKET = re.compile(r"[\[{]")
_MISSING = object()


class Call(NamedTuple):
    """A function that is called; `arguments` as compact JSON with sorted names."""

    name: str
    arguments: str


def json_in(text: str) -> Any:
    """The value of a text that is JSON, alone or in a Markdown block; raises ValueError if it is not, or is longer than
    20,000 characters, nested more than 60 deep, or has a number of more than 40 digits."""
    if len(text) > MAX_CHARS:
        raise ValueError("too long")
    return _parsed(fenced(text)[1])


def is_json(text: str) -> bool:
    """Whether it is a JSON object or list."""
    try:
        return isinstance(json_in(text), dict | list)
    except ValueError:
        return False


def field_match(answer: str, expected: str) -> float:
    """F1 over the fields of two JSON texts: a field is the path to a value and the value. 0 for an answer that is no
    JSON; 1 for two empty ones. Order of names does not matter, order in lists does."""
    try:
        has, wanted = Counter(_fields(json_in(answer))), Counter(_fields(json_in(expected)))
    except ValueError:
        return 0.0
    shared = sum((has & wanted).values())
    total = sum(has.values()) + sum(wanted.values())
    return 2 * shared / total if total else 1.0


def calls_in(text: str) -> list[Call]:
    """Calls in order, in any of the ways that chat templates write them: `name({...})`, as our rows are shown, or JSON
    objects with name and arguments (Hermes, Qwen, Mistral) or parameters (Llama), in tags, lists or alone."""
    text = bounded(text)
    if written := _WRITTEN_CALL.findall(text)[:_MAX_CALLS]:
        return [Call(name, _compact(arguments)) for name, arguments in written]
    return [call for value in _values_in(text) for call in _calls_of(value)][:_MAX_CALLS]


def same_calls(answer: str, expected: str) -> bool:
    """Whether the same functions are called with the same arguments, in order; none where none is expected."""
    return calls_in(answer) == calls_in(expected)


def same_functions(answer: str, expected: str) -> bool:
    """As same_calls, whatever the arguments."""
    return [c.name for c in calls_in(answer)] == [c.name for c in calls_in(expected)]


def code_parses(text: str) -> bool:
    """Whether it is Python by Python's own parser, alone or in a Markdown block; it is never run. What is longer than
    20,000 characters or nested more deeply than the parser goes is not."""
    return _syntax_tree(text) is not None


def is_code(text: str) -> bool:
    """Whether it is Python that does something: a name, a number or a sentence of one word parses too."""
    language, content = fenced(text)
    if language in ("python", "py", "python3"):
        return True
    tree = _syntax_tree(content)
    return tree is not None and any(_does_something(node) for node in tree.body)


def _does_something(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    return not isinstance(node, ast.AnnAssign)  # 'city: Rome' is one


def _syntax_tree(text: str) -> ast.Module | None:
    if len(text) > MAX_CHARS:
        return None
    content = fenced(text)[1]
    if not content.strip():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(content)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _parsed(text: str) -> Any:
    """Raises ValueError."""
    try:
        value = json.loads(text, parse_int=_number, parse_float=_number)
    except RecursionError:
        raise ValueError("too deep") from None
    if is_deeper_than(value, _MAX_DEPTH):
        raise ValueError("too deep")
    return value


def _number(digits: str) -> float:
    """1 and 1.0 are one value."""
    if len(digits) > _MAX_DIGITS:
        raise ValueError("too many digits")
    return float(digits)


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _fields(inner, f"{path}/{name}")
    elif isinstance(value, list) and value:
        for at, inner in enumerate(value):
            yield from _fields(inner, f"{path}/{at}")
    else:
        yield path, json.dumps(value)


def _compact(arguments: Any) -> str:
    """JSON text or a value as text that is the same for the same value."""
    if isinstance(arguments, str):
        try:
            arguments = _parsed(arguments)
        except ValueError:
            return arguments.strip()
    return json.dumps(arguments, sort_keys=True)


def _values_in(text: str) -> Iterator[Any]:
    """JSON values that begin at a bracket outside of the one before."""
    decoder = json.JSONDecoder(parse_int=_number, parse_float=_number)
    at, tries = 0, 0
    while tries < _MAX_CALLS and (found := _BRACKET.search(text, at)):
        tries, at = tries + 1, found.start()
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        if not is_deeper_than(value, _MAX_DEPTH):
            yield value


def _calls_of(value: Any) -> Iterator[Call]:
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, dict):
            continue
        function = each.get("function")
        inner = function if isinstance(function, dict) else each
        name = inner.get("name")
        arguments = inner.get("arguments", inner.get("parameters", _MISSING))
        if isinstance(name, str) and arguments is not _MISSING:
            yield Call(name, _compact(arguments))
