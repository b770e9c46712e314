"""Learns how a chat template lays out a conversation, so that the place of every answer is known exactly.

A template is a black box. It is rendered once per order of turns with marked contents; what stands
between the marks is the skeleton.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from qlora_space.data.messages import Message, Role, ToolCall
from qlora_space.data.template.infer_answers import Place, Render, Spans, finish_last, learn_answers
from qlora_space.data.template.layout import (
    AS_JSON,
    KEEP,
    TRIM_ALL,
    TRIM_LINES,
    Skeleton,
    SkeletonUnknown,
    Slot,
)

_PAD = "\n \t"
_PAD_AS_JSON = json.dumps(_PAD)[1:-1]


def shape_of(message: Message) -> Message:
    """What the layout of a turn depends on. Turns of the same shape are laid out in the same way."""
    if not (message.calls or message.reasoning or message.role == "tool"):
        return _plain_shape(message.role)
    has_content = bool(message.content.strip()) or not message.calls
    calls = tuple(ToolCall(call.name, "{}", call.id) for call in message.calls)
    reasoning = "r" if message.reasoning else ""
    return replace(message, content="c" if has_content else "", reasoning=reasoning, calls=calls)


@cache
def _plain_shape(role: Role) -> Message:
    return Message(role, "c")


def learn_skeleton(
    shapes: Sequence[Message],
    render: Render,
    added_tokens: re.Pattern[str],
    eos: str,
    marked: Callable[[Sequence[Message]], Spans] | None = None,
) -> Skeleton:
    """Render marked conversations and read the layout off them.

    `marked` gives the spans of the template's own generation markers, if it has them. Raises
    TemplateRefused, or SkeletonUnknown if a content is missing, doubled or changed.
    """
    plain = marked_turns(shapes)
    text = render(plain, False)
    spans = marked(plain) if marked else None
    places = [_place(text, plain, index, render, added_tokens) for index in range(len(plain))]
    places = sorted(_narrowed(places, spans), key=lambda place: place.start)
    literals = _literals(text, places)
    padded = [
        _padded(message, place) for message, place in zip(plain, _by_turn(places), strict=True)
    ]
    slots = _learn_slots(render(padded, False), text, places, literals)
    answers, matches_prompt = learn_answers(
        text, plain, places, literals, render, added_tokens, spans
    )
    answers[-1], appended = finish_last(answers[-1], literals[-1], added_tokens, eos)
    return Skeleton(tuple(literals), tuple(slots), tuple(answers), appended, matches_prompt)


def marked_turns(shapes: Sequence[Message]) -> list[Message]:
    """A conversation of these shapes, each content of which is nowhere else."""
    return [_marked_turn(index, shape) for index, shape in enumerate(shapes)]


def _marked_turn(index: int, shape: Message) -> Message:
    calls = tuple(
        replace(call, arguments=json.dumps({"Kx": f"Vx{index}n{number}zV"}))
        for number, call in enumerate(shape.calls)
    )
    content = f"Qx{index}zQ" if shape.content else ""
    reasoning = f"Rx{index}zR" if shape.reasoning else ""
    return replace(shape, content=content, reasoning=reasoning, calls=calls)


def _marks_of_calls(message: Message) -> list[str]:
    return [json.loads(call.arguments)["Kx"] for call in message.calls]


def _place(
    text: str,
    plain: Sequence[Message],
    index: int,
    render: Render,
    added_tokens: re.Pattern[str],
) -> Place:
    message = plain[index]
    if message.content and text.count(message.content) != 1:
        times = "leaves out" if message.content not in text else "repeats"
        code = "no_tools" if message.role == "tool" or message.calls else "unproved_mask"
        raise SkeletonUnknown(f"the chat template {times} a turn of the role {message.role}", code)
    if any(mark not in text for mark in _marks_of_calls(message)):
        raise SkeletonUnknown("the chat template does not write calls of tools", "no_tools")
    shows_reasoning = bool(message.reasoning) and message.reasoning in text
    if not message.calls and not shows_reasoning:
        start = text.index(message.content)
        return Place(Slot(index, message.role), start, start + len(message.content))
    start = len(_prompt_of(text, plain[:index], render))
    end = _end_of_opaque(text, plain[: index + 1], render, added_tokens)
    slot = Slot(index, message.role, is_opaque=True, shows_reasoning=shows_reasoning)
    return Place(slot, start, end)


def _prompt_of(text: str, before: Sequence[Message], render: Render) -> str:
    prompt = render(before, True)
    if not text.startswith(prompt):
        raise SkeletonUnknown(
            "the chat template asks for an answer in another way than it shows one"
        )
    return prompt


def _end_of_opaque(
    text: str, turns: Sequence[Message], render: Render, added_tokens: re.Pattern[str]
) -> int:
    """Up to the token that ends the turn; what stands before it depends on the arguments."""
    message = turns[-1]
    marks = [message.reasoning, message.content, *_marks_of_calls(message)]
    end, last = max((text.rfind(mark) + len(mark), mark) for mark in marks if mark)
    if last == message.content:
        return end
    alone = render(turns, False)
    tail = alone[alone.rfind(last) + len(last) :]
    tokens = list(added_tokens.finditer(tail))
    if not tokens or not text.startswith(tail[: tokens[-1].end()], end):
        raise SkeletonUnknown("the chat template ends a call of a tool with no token of its own")
    return end + tokens[-1].start()


def _narrowed(places: Sequence[Place], spans: Spans | None) -> list[Place]:
    """An opaque turn begins where the template's own marker does, if that is later."""
    return [
        replace(place, start=start)
        if place.slot.is_opaque and (start := _start_of_mark(place, spans or ())) is not None
        else place
        for place in places
    ]


def _start_of_mark(place: Place, spans: Spans) -> int | None:
    return next((s for s, e in spans if place.start <= s < place.end <= e), None)


def _by_turn(places: Sequence[Place]) -> list[Place]:
    return sorted(places, key=lambda place: place.slot.message)


def _literals(text: str, places: Sequence[Place]) -> list[str]:
    if not places or places[-1].slot.role != "assistant":
        raise SkeletonUnknown("the chat template does not write the last answer last")
    literals, position = [], 0
    for place in places:
        if place.start < position:
            raise SkeletonUnknown("the chat template writes one turn into another")
        literals.append(text[position : place.start])
        position = place.end
    return [*literals, text[position:]]


def _padded(message: Message, place: Place) -> Message:
    if place.slot.is_opaque:
        return message
    return replace(message, content=_PAD + message.content + _PAD[::-1])


def _learn_slots(
    padded: str, text: str, places: Sequence[Place], literals: Sequence[str]
) -> list[Slot]:
    """What the template trims, told by what is left of the padding."""
    slots: list[Slot] = []
    position = 0
    for at, place in enumerate(places):
        mark = text[place.start : place.end]
        found = padded.find(mark, position)
        left = padded[position + len(literals[at]) : found]
        if found < 0 or not padded.startswith(literals[at], position):
            raise SkeletonUnknown("the chat template depends on the content of a turn")
        right = _right_of(padded, found + len(mark), literals[at + 1])
        trims = {"trim_left": _trim_of(left), "trim_right": _trim_of(right, is_right=True)}
        if (left == _PAD_AS_JSON) != (right == _reversed_json()):
            raise SkeletonUnknown("the chat template changes the white space of a turn")
        slots.append(replace(place.slot, **trims) if not place.slot.is_opaque else place.slot)
        position = found + len(mark) + len(right)
    if padded[position:] != literals[-1]:
        raise SkeletonUnknown("the chat template depends on the content of a turn")
    return slots


def _reversed_json() -> str:
    return json.dumps(_PAD[::-1])[1:-1]


def _right_of(text: str, start: int, following: str) -> str:
    pad = _PAD[::-1]
    for right in (_reversed_json(), pad, pad[:2], ""):
        if text.startswith(right + following, start):
            return right
    raise SkeletonUnknown("the chat template changes the end of a turn")


def _trim_of(found: str, is_right: bool = False) -> str:
    if found in (_PAD_AS_JSON, _reversed_json()):
        return AS_JSON
    trims = {_PAD: KEEP, _PAD[1:]: TRIM_LINES, "": TRIM_ALL}
    left = found[::-1] if is_right else found
    if left not in trims:
        raise SkeletonUnknown("the chat template changes the white space of a turn")
    return trims[left]
