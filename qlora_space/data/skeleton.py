"""Learns how a chat template lays out a conversation, so that the place of every answer is known exactly.

A template is a black box. It is rendered once per order of roles with marked contents; what stands
between the marks is the skeleton: literal text and slots. A real conversation is then rendered, and
only if the filled skeleton is that very text are its answers taken from the slots.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlora_space.data.rows import Message, Role

Render = Callable[[Sequence[Message], bool], str]
"""Messages and whether to add the generation prompt -> text. Raises TemplateRefused."""

_PAD = "\n \t"
# What a template trims from the ends of a content, told by what is left of the padding.
_KEEP, _TRIM_LINES, _TRIM_ALL = "", "\n", "all"


class TemplateRefused(Exception):
    """The template raised for these roles. The text is the template's own words."""


class SkeletonUnknown(Exception):
    """The layout could not be learned; the text says why."""


@dataclass(frozen=True)
class Slot:
    """Where a message's content stands, and what is trimmed from its ends."""

    message: int
    role: Role
    trim_left: str
    trim_right: str

    def shown(self, content: str) -> str:
        """The content as the template writes it."""
        return _trimmed_right(_trimmed_left(content, self.trim_left), self.trim_right)


@dataclass(frozen=True)
class Answer:
    """What is trained around a slot: so many characters before it and after it."""

    lead: str
    end: str


@dataclass(frozen=True)
class Skeleton:
    """literals[0] slots[0] literals[1] ... slots[-1] literals[-1]"""

    literals: tuple[str, ...]
    slots: tuple[Slot, ...]
    answers: tuple[Answer | None, ...]
    appended_end: str
    matches_prompt: bool

    def fill(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and start and end of what is trained in it."""
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        position = 0
        for literal, slot, answer in zip(self.literals, self.slots, self.answers, strict=False):
            shown = slot.shown(messages[slot.message].content)
            pieces += (literal, shown)
            start = position + len(literal)
            position = start + len(shown)
            if answer:
                spans.append((start - len(answer.lead), position + len(answer.end)))
        pieces.append(self.literals[-1])
        return "".join(pieces), spans

    def finish(self, text: str, spans: list[tuple[int, int]]) -> str:
        """The text with the EOS that the template leaves out."""
        if not self.appended_end:
            return text
        return text[: spans[-1][1] - len(self.appended_end)] + self.appended_end

    def locate(self, text: str, messages: Sequence[Message]) -> list[tuple[int, int]] | None:
        """Spans in a text whose answers the template rewrote; None where there is any doubt."""
        spans: list[tuple[int, int]] = []
        position = 0
        for index, (slot, answer) in enumerate(zip(self.slots, self.answers, strict=True)):
            before = self.literals[index]
            before = before[: len(before) - len(answer.lead)] if answer else before
            if not text.startswith(before, position):
                return None
            position += len(before)
            content = messages[slot.message].content
            if answer is None:
                shown = slot.shown(content)
                if not text.startswith(shown, position):
                    return None
                position += len(shown)
                continue
            end = self._end_of_answer(text, position, index, messages)
            if end is None or not _says_the_same(text[position:end], content, answer.lead):
                return None
            spans.append((position, end + len(answer.end)))
            position = end
        return spans if text[position:] == self.literals[-1] else None

    def _end_of_answer(
        self, text: str, start: int, index: int, messages: Sequence[Message]
    ) -> int | None:
        """Where the only occurrence of what must follow the answer begins."""
        after = self.literals[index + 1]
        if index + 1 == len(self.slots):
            return len(text) - len(after) if text.endswith(after) else None
        following = self.slots[index + 1]
        next_answer = self.answers[index + 1]
        if next_answer:
            after = after[: len(after) - len(next_answer.lead)]
        else:
            after += following.shown(messages[following.message].content)
        found = text.find(after, start)
        is_only = found >= 0 and text.find(after, found + 1) < 0
        return found if is_only and after else None


def learn_skeleton(
    roles: Sequence[Role],
    render: Render,
    added_tokens: re.Pattern[str],
    eos: str,
    marked: Callable[[Sequence[Message]], list[tuple[int, int]]] | None = None,
) -> Skeleton:
    """Render marked conversations and read the layout off them.

    `marked` gives the spans of the template's own generation markers, if it has them. Raises
    TemplateRefused, or SkeletonUnknown if a content is missing, doubled or changed.
    """
    plain = [Message(role, f"Qx{index}zQ") for index, role in enumerate(roles)]
    text = render(plain, False)
    order, literals = _split_at_marks(text, plain)
    padded = [Message(m.role, _PAD + m.content + _PAD[::-1]) for m in plain]
    slots = _learn_slots(render(padded, False), plain, order, literals)
    ends = _ends_of_turns(slots, literals, added_tokens)
    spans = marked(plain) if marked else None
    answers: list[Answer | None] = []
    matches_prompt = True
    position = 0
    for slot, literal, end_of_turn in zip(slots, literals[:-1], ends, strict=True):
        start = position + len(literal)
        position = start + len(plain[slot.message].content)
        if slot.role != "assistant":
            answers.append(None)
            continue
        lead = _lead(text, start, plain[: slot.message], render)
        matches_prompt = lead is not None
        answer = Answer(lead or "", end_of_turn)
        if spans is not None:
            answer = _marked_answer(answer, text, spans, (start, position), added_tokens)
        answers.append(answer)
    answers[-1], appended = _finish(answers[-1], literals[-1], added_tokens, eos)
    return Skeleton(tuple(literals), tuple(slots), tuple(answers), appended, matches_prompt)


def _split_at_marks(text: str, plain: Sequence[Message]) -> tuple[list[int], list[str]]:
    for message in plain:
        if text.count(message.content) != 1:
            times = "leaves out" if message.content not in text else "repeats"
            raise SkeletonUnknown(f"the chat template {times} a {message.role} turn")
    order = sorted(range(len(plain)), key=lambda index: text.index(plain[index].content))
    if not order or plain[order[-1]].role != "assistant":
        raise SkeletonUnknown("the chat template does not write the last answer last")
    literals, position = [], 0
    for index in order:
        at = text.index(plain[index].content)
        literals.append(text[position:at])
        position = at + len(plain[index].content)
    return order, [*literals, text[position:]]


def _learn_slots(
    text: str, plain: Sequence[Message], order: list[int], literals: list[str]
) -> list[Slot]:
    slots: list[Slot] = []
    position = 0
    for at, index in enumerate(order):
        mark = plain[index].content
        found = text.find(mark, position)
        left = text[position + len(literals[at]) : found]
        if found < 0 or not text.startswith(literals[at], position):
            raise SkeletonUnknown("the chat template depends on the content of a turn")
        right_start = found + len(mark)
        right = _right_of(text, right_start, literals[at + 1])
        slots.append(Slot(index, plain[index].role, _trim_of(left), _trim_of(right[::-1])))
        position = right_start + len(right)
    if text[position:] != literals[-1]:
        raise SkeletonUnknown("the chat template depends on the content of a turn")
    return slots


def _right_of(text: str, start: int, following: str) -> str:
    pad = _PAD[::-1]
    for length in (3, 2, 0):
        if text.startswith(pad[:length] + following, start):
            return pad[:length]
    raise SkeletonUnknown("the chat template changes the end of a turn")


def _trim_of(left: str) -> str:
    trims = {_PAD: _KEEP, _PAD[1:]: _TRIM_LINES, "": _TRIM_ALL}
    if left not in trims:
        raise SkeletonUnknown("the chat template changes the white space of a turn")
    return trims[left]


def _trimmed_left(content: str, trim: str) -> str:
    if trim == _KEEP:
        return content
    return content.lstrip() if trim == _TRIM_ALL else content.lstrip(trim)


def _trimmed_right(content: str, trim: str) -> str:
    if trim == _KEEP:
        return content
    return content.rstrip() if trim == _TRIM_ALL else content.rstrip(trim)


def _lead(text: str, start: int, before: Sequence[Message], render: Render) -> str | None:
    """What stands between the generation prompt and the answer: the model has to write it itself.

    None if the template asks for an answer with other words than it shows one with.
    """
    try:
        prompt = render(before, True)
        without = render(before, False)
    except TemplateRefused:
        return None
    if not text.startswith(prompt) or len(prompt) > start:
        return None
    lead = text[len(prompt) : start]
    # Without a generation prompt the header would be left to the model: it belongs to the prompt.
    return lead if prompt != without or not lead.strip() else None


def _end_of_turn(tail: str, added_tokens: re.Pattern[str]) -> str:
    """Up to and with the first token of the vocabulary that is not text, else all but white space."""
    found = added_tokens.search(tail)
    return tail[: found.end()] if found else tail.rstrip()


def _ends_of_turns(
    slots: Sequence[Slot], literals: Sequence[str], added_tokens: re.Pattern[str]
) -> list[str]:
    """After each slot, the end-of-turn text: the one after the last answer, or that of any turn.

    A token that only follows answers between turns may open the next turn: it is not trained.
    """
    first_ends = [_end_of_turn(tail, added_tokens) for tail in literals[1:]]
    of_users = {e for e, slot in zip(first_ends, slots, strict=True) if slot.role == "user"}
    final = first_ends[-1]
    return [
        final if tail.startswith(final) else end if end in of_users else ""
        for tail, end in zip(literals[1:], first_ends, strict=True)
    ]


def _marked_answer(
    derived: Answer,
    text: str,
    spans: Sequence[tuple[int, int]],
    content: tuple[int, int],
    added_tokens: re.Pattern[str],
) -> Answer:
    """The markers decide, but never for more than the model writes after the generation prompt."""
    start, end = content
    for marked_start, marked_end in spans:
        if marked_start <= start and end <= marked_end:
            lead = text[max(marked_start, start - len(derived.lead)) : start]
            return Answer(lead, _end_of_turn(text[end:marked_end], added_tokens))
    raise SkeletonUnknown("the chat template's generation markers leave out an answer")


def _finish(
    answer: Answer | None, tail: str, added_tokens: re.Pattern[str], eos: str
) -> tuple[Answer | None, str]:
    """The last answer ends with a token that stops generation: EOS if the template has none."""
    if answer is None or added_tokens.search(answer.end):
        return answer, ""
    end = _end_of_turn(tail, added_tokens)
    if added_tokens.search(end):
        return Answer(answer.lead, end), ""
    return Answer(answer.lead, end + eos), eos


def _says_the_same(shown: str, content: str, lead: str) -> bool:
    """Equal but for white space, the lead, and reasoning that the template leaves out."""
    without_reasoning = content.rpartition("</think>")[2]
    wanted = {_squeezed(c) for c in (content, lead + content, without_reasoning)}
    return _squeezed(shown) in wanted | {_squeezed(lead + without_reasoning)}


def _squeezed(text: str) -> str:
    return "".join(text.split())
