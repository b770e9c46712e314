"""Chats of the base model's pre-training text: one short user request, one exact answer.

Most of them need the model to look a word up in the request and to copy it.
"""

from collections.abc import Callable
from random import Random

from demo import words
from demo.passages import RELATIONS, passage, slots, statement

Messages = list[dict[str, str]]

FIELD_NAMES = {
    "who": ("name", "person", "who"), "town": ("town", "place", "home"),
    "item": ("thing", "object", "what"), "colour": ("colour",), "number": ("number", "coins"),
    "day": ("day", "when"), "job": ("job", "work"), "food": ("food",), "animal": ("animal", "pet"),
    "quality": ("state", "how"),
}  # fmt: skip
FIELD_LINES = {
    "who": ("My name is {who}.", "This is {who}.", "{who} is here.", "I met {who}."),
    "town": ("It was in {town}.", "The road to {town} is long.", "{town} is a fine town."),
    "item": ("There is {a_item}.", "The {item} is mine.", "I look at the {item}."),
    "colour": ("The colour is {colour}.",),
    "number": ("It cost {number} coins.", "There are {number} of them."),
    "day": ("It was on {day}.", "See you on {day}."),
    "job": ("The {job} came too.", "I am a {job}."),
    "food": ("We ate {food}.", "I like {food}."),
    "animal": ("A {animal} ran by.", "The {animal} is asleep."),
    "quality": ("It is {quality}.", "All was {quality}."),
}
JOINERS = ("; ", ", ", " / ", " - ", "\n", " | ")
MESSAGE_OPENINGS = (
    "Hello, this is {who} from {town}.", "Hi, my name is {who} and I live in {town}.",
    "Good day, {who} from {town} here.", "Dear friend, I am {who}, and my home is {town}.",
)  # fmt: skip
MESSAGE_LINES = (
    "My {item} is {fault}.", "The {item} arrived {fault}.", "The {item} from {day} is {fault}.",
    "I paid {number} coins for {a_item} and it is {fault}.", "I have lost my {item}.",
)  # fmt: skip
MESSAGE_ENDINGS = ("Please help me.", "Please hurry!", "There is no rush.", "This is urgent.")
GREETINGS = ("Good evening", "Hey", "Greetings", "Welcome")


def chat(user: str, assistant: str, system: str | None = None) -> Messages:
    head = [{"role": "system", "content": system}] if system else []
    return [
        *head, {"role": "user", "content": user}, {"role": "assistant", "content": assistant}
    ]  # fmt: skip


def lookup(rng: Random) -> Messages:
    found = passage(rng)
    forms = ("{0}\n{1}", "{0} {1}", "Read this: {0}\nQuestion: {1}", "{1}\n{0}")
    user = rng.choice(forms).format(found.text, found.question)
    draw = rng.random()
    if draw < 0.6:
        return chat(user, found.answer)
    if draw < 0.8:
        return chat(user, found.source, "Answer in a full sentence.")
    return chat(user, found.answer, "Answer in a few words.")


def follow_up(rng: Random) -> Messages:
    first, second = passage(rng, 2), passage(rng, 2)
    start = chat(f"{first.text}\n{second.text}\n{first.question}", first.answer)
    return start + chat(second.question, second.answer)


def copy(rng: Random) -> Messages:
    text = statement(rng) if rng.random() < 0.4 else " ".join(words.any_words(rng, 2, 9))
    forms = ("Repeat: {}", "Copy this: {}", "Say after me: {}", "{}\nWrite the line above again.")
    return chat(rng.choice(forms).format(text), text)


def word_list(rng: Random) -> Messages:
    found = words.any_words(rng, 3, 8)
    forms = (
        ("First word: {}", found[0]), ("Last word: {}", found[-1]),
        ("Which word comes first? {}", found[0]), ("Which word comes last? {}", found[-1]),
        ("Second word: {}", found[1]), ("List the words: {}", ", ".join(found)),
        ("Turn the words round: {}", " ".join(reversed(found))),
        ("How many words? {}", str(len(found))), ("Each on a line: {}", "\n".join(found)),
    )  # fmt: skip
    form, answer = rng.choice(forms)
    return chat(form.format(" ".join(found)), answer)


def next_word(rng: Random) -> Messages:
    found = list(dict.fromkeys([*words.any_words(rng, 3, 9), words.made_up_word(rng)]))
    at = rng.randrange(max(1, len(found) - 1))
    one, two = found[at], found[min(at + 1, len(found) - 1)]
    line = " ".join(found)
    if rng.random() < 0.5:
        return chat(f"{line}\nWhat comes after {one}?", two)
    return chat(f"{line}\nWhat comes before {two}?", one)


def fields(rng: Random) -> Messages:
    """Several values go into named fields, in the requested order and form."""
    fact, keys = slots(rng), rng.sample(list(FIELD_NAMES), rng.randint(1, 5))
    lines = [rng.choice(FIELD_LINES[key]).format_map(fact) for key in keys]
    lines += [statement_without_clash(rng, keys) for _ in range(rng.randint(0, 1))]
    rng.shuffle(lines)
    asked = rng.sample(keys, rng.randint(1, len(keys)))
    names, joiner = {key: rng.choice(FIELD_NAMES[key]) for key in asked}, rng.choice(JOINERS)
    wanted = joiner.join(f"{names[key]}:" for key in asked)
    answer = joiner.join(f"{names[key]}: {fact[key]}" for key in asked)
    form = rng.choice(("{0}\nFill in: {1}", "Fill in: {1}\n{0}", "{0}\nNote down {1}"))
    return chat(form.format(" ".join(lines), wanted), answer)


def statement_without_clash(rng: Random, keys: list[str]) -> str:
    rest = [key for key in FIELD_LINES if key not in keys]
    return rng.choice(FIELD_LINES[rng.choice(rest)]).format_map(slots(rng))


def opposite(rng: Random) -> Messages:
    pair = rng.choice(words.PAIRS)
    one, two = pair if rng.random() < 0.5 else pair[::-1]
    item = slots(rng)["item"]
    forms = (
        (f"What is the opposite of {one}?", two), (f"Opposite: {one}", two),
        (f"The {item} is not {one}. How is it?", f"The {item} is {two}."),
    )  # fmt: skip
    return chat(*rng.choice(forms))


def change(rng: Random) -> Messages:
    """One value of a statement is replaced, the rest is copied."""
    relation, old, new = rng.choice(RELATIONS), slots(rng), slots(rng)
    line = rng.choice(relation.statements)
    present = [key for key in ("who", "town", "colour", "number", "food") if f"{{{key}}}" in line]
    if not present:
        return copy(rng)
    key = rng.choice(present)
    user = f"Write {new[key]} for {old[key]}: {line.format_map(old)}"
    return chat(user, line.format_map(old | {key: new[key]}))


def yes_or_no(rng: Random) -> Messages:
    fact, other = slots(rng), slots(rng)
    key = rng.choice(("colour", "town", "day", "animal", "food"))
    asked = fact[key] if rng.random() < 0.5 else other[key]
    answer = "yes" if asked == fact[key] else f"no, {fact[key]}"
    line = rng.choice(FIELD_LINES[key]).format_map(fact)
    return chat(f"{line} {statement_without_clash(rng, [key])}\nIs it {asked}?", answer)


def sums(rng: Random) -> Messages:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    big, small = max(a, b), min(a, b)
    forms = (
        (f"{a} + {b}", f"{a + b}"), (f"What is {big} - {small}?", f"{big - small}"),
        (f"Which is more, {a} or {b}?", f"{big}"), (f"How much is {a} plus {b}?", f"{a + b}"),
    )  # fmt: skip
    return chat(*rng.choice(forms))


def message(rng: Random) -> Messages:
    """Somebody writes without asking anything; the answer is polite."""
    fact = slots(rng)
    lines = [rng.choice(MESSAGE_OPENINGS), rng.choice(MESSAGE_LINES)]
    if rng.random() < 0.5:
        lines.append(rng.choice(rng.choice(RELATIONS).statements))
    if rng.random() < 0.5:
        lines.append(rng.choice(MESSAGE_ENDINGS))
    answer = "Thank you for your message, {who}. I am sorry to hear about the {item}."
    return chat(" ".join(lines).format_map(fact), answer.format_map(fact))


def small_talk(rng: Random) -> Messages:
    fact, hello = slots(rng), rng.choice(GREETINGS)
    who, town, item = fact["who"], fact["town"], fact["item"]
    forms = (
        (f"{hello}, I am {who}.", f"Nice to meet you, {who}. How can I help?"),
        (f"{hello}! I come from {town}.", f"I hope all is well in {town}."),
        (f"My {item} is {fact['quality']}.", f"Thank you for telling me about your {item}."),
        (f"I saw {who} on {fact['day']}.", f"How is {who} today?"),
        (
            f"{hello}, {who} from {town} writes to you about {fact['a_item']}. {statement(rng)}",
            f"Thank you, {who}. I hope you like your {item}.",
        ),
        (f"{hello}, {who} sends you {fact['food']}.", f"How kind of {who}. Thank you."),
    )
    if rng.random() < 0.3:
        return chat("What is your name?", f"My name is {who}.", f"Your name is {who}.")
    return chat(*rng.choice(forms))


CHATS: dict[str, tuple[Callable[[Random], Messages], float]] = {
    "lookup": (lookup, 5.0), "follow_up": (follow_up, 1.0), "copy": (copy, 2.0),
    "word_list": (word_list, 2.0), "next_word": (next_word, 1.5), "fields": (fields, 5.0),
    "opposite": (opposite, 0.7), "change": (change, 2.0), "yes_or_no": (yes_or_no, 1.0),
    "sums": (sums, 1.0), "small_talk": (small_talk, 1.0), "message": (message, 1.0),
}  # fmt: skip
