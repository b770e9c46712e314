"""Renders a chat template with contents that note what they are asked, in the process of `child.py`.

A template that only asks questions about contents and joins texts writes the same pieces in the same
order for all contents that answer the questions alike. Of a template that does more there is no trace.
"""

import datetime
import json
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, NoReturn

from jinja2 import Template, Undefined, nodes
from jinja2.compiler import Frame
from jinja2.nativetypes import NativeCodeGenerator


class Untraceable(BaseException):
    """The template does what a trace cannot express. No Exception: Jinja and templates catch those."""


def untraceable(*_args: Any, **_named: Any) -> NoReturn:
    raise Untraceable


_PREDICATES: dict[str, Callable[[str, str], bool]] = {
    "contains": str.__contains__,
    "starts": str.startswith,
    "ends": str.endswith,
    "equals": str.__eq__,
}


class Content:
    """Stands for the text of a turn in a template, and notes each question with its answer.

    Not a str, whose characters can be read without asking. What str can do and is not defined here, or
    only for some answers, raises Untraceable. `_parts` are texts, and
    [turn, [[trim, characters], ...], text]: the content of a turn after some trims.
    """

    __slots__ = ("_parts", "_questions")

    def __init__(self, parts: list[Any], questions: dict[str, bool]) -> None:
        self._parts = parts
        self._questions = questions

    def _text(self) -> str:
        return "".join(part if isinstance(part, str) else part[2] for part in self._parts)

    def _ask(self, kind: str, argument: Any) -> bool:
        if not isinstance(argument, str):
            raise Untraceable
        answer = _PREDICATES[kind](self._text(), argument)
        self._questions[json.dumps([kind, as_json(self), argument])] = answer
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
            raise Untraceable
        lists = (each._parts if isinstance(each, Content) else [each] for each in both)
        return Content([part for parts in lists for part in parts], self._questions)

    def strip(self, characters: Any = None) -> "Content":
        return self.lstrip(characters).rstrip(characters)

    def lstrip(self, characters: Any = None) -> "Content":
        return self._trimmed("lstrip", characters, 0)

    def rstrip(self, characters: Any = None) -> "Content":
        return self._trimmed("rstrip", characters, -1)

    def _trimmed(self, trim: str, characters: Any, end: int) -> "Content":
        """Trims the part at this end; the next one too only if nothing is left of it."""
        if not isinstance(characters, str | None):
            raise Untraceable
        parts = list(self._parts)
        while parts:
            part = parts[end]
            if isinstance(part, str):
                trimmed: Any = getattr(part, trim)(characters)
            else:
                turn, trims, text = part
                trimmed = [turn, [*trims, [trim, characters]], getattr(text, trim)(characters)]
            parts[end] = trimmed
            is_alone = len(parts) == 1
            if is_alone or (
                trimmed if isinstance(part, str) else Content([trimmed], self._questions)
            ):
                break
            del parts[end]
        return Content(parts, self._questions)

    # A text without the separator is its only part.
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
            raise Untraceable
        return self

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            raise TypeError  # as a str does, for Jinja to look up an attribute
        raise Untraceable

    def __getattr__(self, name: str) -> Any:
        raise Untraceable if hasattr(str, name) else AttributeError(name)

    # object defines each of these, or some filter takes its absence for an answer.
    __str__ = __repr__ = __format__ = __len__ = __iter__ = __hash__ = untraceable  # type: ignore
    __int__ = __float__ = __index__ = __reversed__ = __reduce_ex__ = untraceable  # type: ignore


def as_json(text: "str | Content") -> list[Any]:
    """Texts and [turn, trims]; neighbouring texts are joined."""
    whole: list[Any] = []
    for part in text._parts if isinstance(text, Content) else [text]:
        if isinstance(part, str) and whole and isinstance(whole[-1], str):
            whole[-1] += part
        elif part:
            whole.append(part if isinstance(part, str) else part[:2])
    return whole


def concat(values: Iterable[Any]) -> "str | Content":
    """What Jinja does with the outputs of a template, for contents too."""
    whole: str | Content = ""
    for value in values:
        whole += value if isinstance(value, Content) else text_of(value)
    return whole


def text_of(value: Any) -> str:
    if isinstance(value, str | int | float | list | dict | tuple | Undefined | None):
        return str(value)
    raise Untraceable  # methods and the like print their address


class TracingCodeGenerator(NativeCodeGenerator):
    """Passes outputs to `concat` as they are, without str() around them."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    # {% autoescape %}
    visit_EvalContextModifier = visit_ScopedEvalContextModifier = untraceable


def trace(
    template: str, special_tokens: dict[str, Any], job: dict[str, Any], text: str
) -> dict[str, Any] | None:
    """The pieces that the template joins and what it asked before; None if it did more.

    `text`: what the template wrote of the same job untraced, which the pieces must equal.
    """
    questions: dict[str, bool] = {}
    messages = [traced(turn, message, questions) for turn, message in enumerate(job["messages"])]
    try:
        whole: Any = tracing_template(template).render(
            messages=messages,
            tools=job["tools"],
            documents=None,
            add_generation_prompt=job["add_generation_prompt"],
            **special_tokens,
        )
    except MemoryError:
        raise
    except (Untraceable, Exception):
        return None
    if not isinstance(whole, Content) or whole._text() != text:
        return None
    asked = [[*json.loads(question), answer] for question, answer in questions.items()]
    return {"pieces": as_json(whole), "questions": asked}


def traced(turn: int, message: dict[str, Any], questions: dict[str, bool]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": Content([[turn, [], content]], questions)}
    return {
        **message,
        "content": [
            {**part, "text": Content([[turn, [], part["text"]]], questions)} for part in content
        ],
    }


@cache
def tracing_template(template: str) -> Template:
    """In the environment of transformers, private in 5.17 to 5.23; without it nothing is traced."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template(template).environment.overlay()
    environment.code_generator_class = TracingCodeGenerator
    environment.concat = concat  # type: ignore
    tests, filters = environment.tests, environment.filters
    text_tests = {name: for_content(lambda _: True, tests[name]) for name in _TRUE_OF_TEXTS}
    environment.tests = {**tests, **text_tests, "sameas": untraceable}
    environment.filters = {
        **filters,
        "string": for_content(lambda content: content, filters["string"]),
        "trim": for_content(Content.strip, filters["trim"]),
        "random": untraceable,
    }
    environment.getitem = partial(getitem_by_plain_key, environment.getitem)
    environment.globals = {
        **environment.globals,
        "strftime_now": format_today,
        "lipsum": untraceable,
    }
    return environment.from_string(template)


_TRUE_OF_TEXTS = ("string", "iterable", "sequence")


def getitem_by_plain_key(getitem: Callable[..., Any], obj: Any, argument: Any) -> Any:
    return untraceable() if isinstance(argument, Content) else getitem(obj, argument)


def for_content(
    of_content: Callable[..., Any], otherwise: Callable[..., Any]
) -> Callable[..., Any]:
    """A filter or test that is `of_content` for a Content and `otherwise` for anything else."""

    def either(value: Any, *args: Any, **named: Any) -> Any:
        return (of_content if isinstance(value, Content) else otherwise)(value, *args, **named)

    return either


def format_today(format: str) -> str:
    """Only what stays the same all day: the trace is used until midnight."""
    today = datetime.date.today()
    times = (datetime.time.min, datetime.time.max)
    first, last = (datetime.datetime.combine(today, time).strftime(format) for time in times)
    return first if first == last else untraceable()
