"""What is trained around the place of each answer: its lead, and the token that ends its turn."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlora_space.data.messages import Message
from qlora_space.data.template.layout import Answer, SkeletonUnknown, Slot, TemplateRefused

Render = Callable[[Sequence[Message], bool], str]
"""Messages and whether to add the generation prompt -> text. Raises TemplateRefused."""
Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Place:
    """Where the marked turn of a slot stands in the text."""

    slot: Slot
    start: int
    end: int


def learn_answers(
    text: str,
    plain: Sequence[Message],
    places: Sequence[Place],
    literals: Sequence[str],
    render: Render,
    added_tokens: re.Pattern[str],
    spans: Spans | None,
) -> tuple[list[Answer | None], bool]:
    """The answer of each slot, and whether the template asks for answers as it shows them."""
    answers: list[Answer | None] = []
    matches_prompt = True
    for place, end_of_turn in zip(
        places, _ends_of_turns(plain, places, literals, added_tokens), strict=True
    ):
        if place.slot.role != "assistant":
            answers.append(None)
            continue
        lead: str | None = ""
        if not place.slot.is_opaque:
            lead = _lead(text, place.start, plain[: place.slot.message], render)
            matches_prompt = lead is not None
        answer = Answer(lead or "", end_of_turn)
        if spans is not None:
            answer = _marked_answer(answer, text, spans, (place.start, place.end), added_tokens)
        answers.append(answer)
    return answers, matches_prompt


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
    plain: Sequence[Message],
    places: Sequence[Place],
    literals: Sequence[str],
    added_tokens: re.Pattern[str],
) -> list[str]:
    """After each slot, the end-of-turn text: the one after the last answer, or that of any turn.

    A token that only follows answers between turns may open the next turn: it is not trained. A call
    of a tool may have an end of its own, which its slot stops at.
    """
    first_ends = [_end_of_turn(tail, added_tokens) for tail in literals[1:]]
    roles = [place.slot.role for place in places]
    of_users = {end for end, role in zip(first_ends, roles, strict=True) if role == "user"}
    has_calls = [bool(plain[place.slot.message].calls) for place in places]
    final = first_ends[-1]
    return [
        end if calls else final if tail.startswith(final) else end if end in of_users else ""
        for tail, end, calls in zip(literals[1:], first_ends, has_calls, strict=True)
    ]


def _marked_answer(
    derived: Answer,
    text: str,
    spans: Spans,
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


def finish_last(
    answer: Answer | None, tail: str, added_tokens: re.Pattern[str], eos: str
) -> tuple[Answer | None, str]:
    """The last answer ends with a token that stops generation: EOS if the template has none."""
    if answer is None or added_tokens.search(answer.end):
        return answer, ""
    end = _end_of_turn(tail, added_tokens)
    if added_tokens.search(end):
        return Answer(answer.lead, end), ""
    return Answer(answer.lead, end + eos), eos
