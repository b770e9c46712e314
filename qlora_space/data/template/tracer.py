"""Renders a chat template with contents that note what they are asked, in the process of `child.py`.

A template that puts texts together and asks some questions before writes, for all contents that
answer the questions alike, the same pieces in the same order. Where it does more, nothing is recorded.
"""

import datetime
import json
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, NoReturn

from jinja2 import Template, Undefined, nodes
from jinja2.compiler import Frame
from jinja2.nativetypes import NativeCodeGenerator


class Unrecorded(BaseException):
    """The template does what a recording cannot say. No Exception: Jinja and templates catch those."""


def unrecorded(*_args: Any, **_named: Any) -> NoReturn:
    raise Unrecorded


_ANSWERS: dict[str, Callable[[str, str], bool]] = {
    "contains": str.__contains__,
    "starts": str.startswith,
    "ends": str.endswith,
    "equals": str.__eq__,
}


class Content:
    """Stands for the text of a turn in a template, and notes each question with its answer.

    No str, whose inside is read without a question. What a text can do and is not written here, or
    is only so for some answers, raises Unrecorded. `_parts` are texts, and
    [turn, [[how, characters], ...], text]: the content of a turn after some trims.
    """

    __slots__ = ("_asked", "_parts")

    def __init__(self, parts: list[Any], asked: dict[str, bool]) -> None:
        self._parts = parts
        self._asked = asked

    def _text(self) -> str:
        return "".join(part if isinstance(part, str) else part[2] for part in self._parts)

    def _ask(self, kind: str, argument: Any) -> bool:
        if not isinstance(argument, str):
            raise Unrecorded
        answer = _ANSWERS[kind](self._text(), argument)
        self._asked[json.dumps([kind, as_json(self), argument])] = answer
        return answer

    def __bool__(self) -> bool:
        return not self._ask("equals", "")

    def __eq__(self, other: object) -> bool:
        if other is None or isinstance(other, bool | int | float | list | tuple | dict):
            return False
        return self._ask("equals", other)

    def __contains__(self, other: Any) -> bool:
        return self._ask("contains", other)

    def startswith(self, prefix: Any) -> bool:
        return self._ask("starts", prefix)

    def endswith(self, suffix: Any) -> bool:
        return self._ask("ends", suffix)

    def __add__(self, other: Any) -> "Content":
        return self._joined(self, other)

    def __radd__(self, other: Any) -> "Content":
        return self._joined(other, self)

    def _joined(self, *both: Any) -> "Content":
        if not all(type(each) in (str, Content) for each in both):  # Markup escapes what is added
            raise Unrecorded
        lists = (each._parts if isinstance(each, Content) else [each] for each in both)
        return Content([part for parts in lists for part in parts], self._asked)

    def strip(self, characters: Any = None) -> "Content":
        return self.lstrip(characters).rstrip(characters)

    def lstrip(self, characters: Any = None) -> "Content":
        return self._trimmed("lstrip", characters, 0)

    def rstrip(self, characters: Any = None) -> "Content":
        return self._trimmed("rstrip", characters, -1)

    def _trimmed(self, how: str, characters: Any, end: int) -> "Content":
        """What is at the end goes; the next part is trimmed too only if nothing is left of it."""
        if not isinstance(characters, str | None):
            raise Unrecorded
        parts = list(self._parts)
        while parts:
            part = parts[end]
            if isinstance(part, str):
                trimmed: Any = getattr(part, how)(characters)
            else:
                turn, trims, text = part
                trimmed = [turn, [*trims, [how, characters]], getattr(text, how)(characters)]
            parts[end] = trimmed
            is_alone = len(parts) == 1
            if is_alone or (trimmed if isinstance(part, str) else Content([trimmed], self._asked)):
                break
            del parts[end]
        return Content(parts, self._asked)

    # Without the separator in it, a text is its only part.
    def split(self, separator: Any = None, maxsplit: Any = -1) -> list["Content"]:
        return [self._without(separator)]

    rsplit = split

    def partition(self, separator: Any) -> tuple["Content", str, str]:
        return self._without(separator), "", ""

    def rpartition(self, separator: Any) -> tuple[str, str, "Content"]:
        return "", "", self._without(separator)

    def replace(self, old: Any, new: Any, count: Any = -1) -> "Content":
        return self._without(old)

    def _without(self, part: Any) -> "Content":
        if not part or self._ask("contains", part):
            raise Unrecorded
        return self

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            raise TypeError  # as a text does, for Jinja to look for an attribute
        raise Unrecorded

    def __getattr__(self, name: str) -> Any:
        raise Unrecorded if hasattr(str, name) else AttributeError(name)

    # Each of these has a default, or an absence that some filter takes for an answer.
    __str__ = __repr__ = __format__ = __len__ = __iter__ = __hash__ = unrecorded  # type: ignore
    __int__ = __float__ = __index__ = __reversed__ = __reduce_ex__ = unrecorded  # type: ignore


def as_json(text: "str | Content") -> list[Any]:
    """A text and [turn, trims] in turns; neighbouring texts are one."""
    whole: list[Any] = []
    for part in text._parts if isinstance(text, Content) else [text]:
        if isinstance(part, str) and whole and isinstance(whole[-1], str):
            whole[-1] += part
        elif part:
            whole.append(part if isinstance(part, str) else part[:2])
    return whole


def concat(values: Iterable[Any]) -> "str | Content":
    """What Jinja does with the outputs of a template, but for contents."""
    whole: str | Content = ""
    for value in values:
        whole += value if isinstance(value, Content) else written(value)
    return whole


def written(value: Any) -> str:
    if isinstance(value, str | int | float | list | dict | tuple | Undefined | None):
        return str(value)
    raise Unrecorded  # methods and the like have their address in their text


class RecordingGenerator(NativeCodeGenerator):
    """Hands outputs to `concat` as they are, without str() around them."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    # {% autoescape %}
    visit_EvalContextModifier = visit_ScopedEvalContextModifier = unrecorded


def record(
    template: str, special_tokens: dict[str, Any], job: dict[str, Any], text: str
) -> dict[str, Any] | None:
    """The pieces that the template puts together and what it asked before; None if it did more."""
    asked: dict[str, bool] = {}
    messages = [recorded(turn, message, asked) for turn, message in enumerate(job["messages"])]
    try:
        whole: Any = recording_template(template).render(
            messages=messages,
            tools=job["tools"],
            documents=None,
            add_generation_prompt=job["prompt"],
            **special_tokens,
        )
    except MemoryError:
        raise
    except (Unrecorded, Exception):
        return None
    if not isinstance(whole, Content) or whole._text() != text:
        return None
    return {"pieces": as_json(whole), "asked": [[*json.loads(k), v] for k, v in asked.items()]}


def recorded(turn: int, message: dict[str, Any], asked: dict[str, bool]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": Content([[turn, [], content]], asked)}
    return {
        **message,
        "content": [
            {**part, "text": Content([[turn, [], part["text"]]], asked)} for part in content
        ],
    }


@cache
def recording_template(template: str) -> Template:
    """In the environment of transformers, private in 5.17 to 5.23; without it nothing is recorded."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template(template).environment.overlay()
    environment.code_generator_class = RecordingGenerator
    environment.concat = concat  # type: ignore
    tests, filters = environment.tests, environment.filters
    are_texts = {name: text_or(tests[name], lambda _text: True) for name in _OF_ANY_TEXT}
    environment.tests = {**tests, **are_texts, "sameas": unrecorded}
    environment.filters = {
        **filters,
        "string": text_or(filters["string"], lambda text: text),
        "trim": text_or(filters["trim"], Content.strip),
        "random": unrecorded,
    }
    environment.getitem = partial(item_by_known_name, environment.getitem)
    environment.globals = {**environment.globals, "strftime_now": day, "lipsum": unrecorded}
    return environment.from_string(template)


_OF_ANY_TEXT = ("string", "iterable", "sequence")


def item_by_known_name(getitem: Callable[..., Any], obj: Any, argument: Any) -> Any:
    return unrecorded() if isinstance(argument, Content) else getitem(obj, argument)


def text_or(otherwise: Callable[..., Any], of_text: Callable[..., Any]) -> Callable[..., Any]:
    def either(value: Any, *args: Any, **named: Any) -> Any:
        return (of_text if isinstance(value, Content) else otherwise)(value, *args, **named)

    return either


def day(format: str) -> str:
    """Only what stays the same all day: the recording is used until midnight."""
    today = datetime.date.today()
    times = (datetime.time.min, datetime.time.max)
    first, last = (datetime.datetime.combine(today, time).strftime(format) for time in times)
    return first if first == last else unrecorded()
