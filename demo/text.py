"""The base model's pre-training text: facts, stories, letters, lists and chats.

All of it is drawn from one `random.Random`, so a seed determines the text.
"""

from collections.abc import Callable, Iterator
from random import Random

from demo import words
from demo.chats import CHATS, Messages
from demo.passages import RELATIONS, slots, statement

END_OF_TEXT = "<|endoftext|>"
GENERAL_SEED = 900_001

THEN = ("Then", "Later", "After that", "The next day", "In the evening", "Soon", "At last")
SAYINGS = (
    '"I like the {item}," said {who}.',
    '"See you on {day}," said {who}.', "{who} was {quality}.", "{who} walked home to {town}.",
    "{who} looked at the {item}.", "It was {quality} in {town}.", "{who} took the {vehicle}.",
    "{who} put the {item} {place}.", "{who} ate {food} with {other}.", "{other} smiled at {who}.",
    '"Please hurry, {who}," said {other}.', '"There is no rush," said {who}.',
    '"This is urgent," {other} told {who}.', "{other} thanked {who} for the help.",
    "{who} and {other} saw a {animal}.", "{other} asked {who} for the {item}.",
)  # fmt: skip
OPENINGS = (
    "Once there was a {job} called {who}. {who} lived in {town} with {other}.",
    "It was {day} in {town}. {who} and {other} were {place}.",
    "{who} wanted {a_item}. In {town} there was a shop.",
    "{who} had a {animal}. The {animal} was called {pet}.",
)
RECORD_KEYS = ("who", "town", "item", "number", "day", "job", "food", "animal", "colour")
RECORD_NAMES = ("person", "town", "object", "number", "day", "job", "food", "animal", "colour")


def facts(rng: Random) -> str:
    """Facts on one set of people and things: names come back and can be copied."""
    fact = slots(rng)
    chosen = rng.sample(RELATIONS, rng.randint(2, 6))
    lines = [rng.choice(relation.statements).format_map(fact) for relation in chosen]
    if rng.random() < 0.3:
        lines.append(statement(rng))
    return " ".join(lines)


def story(rng: Random) -> str:
    fact = slots(rng)
    lines = [rng.choice(OPENINGS).format_map(fact)]
    for saying in rng.sample(SAYINGS, rng.randint(3, 7)):
        line = saying.format_map(fact)
        lines.append(f"{rng.choice(THEN)}, {line}" if line.startswith(fact["who"]) else line)
    return " ".join(lines)


def dialogue(rng: Random) -> str:
    """Two people ask each other what the other has just said."""
    fact, lines = slots(rng), []
    for relation in rng.sample(RELATIONS[:16], rng.randint(1, 3)):
        question, answer = rng.choice(relation.questions)
        line = rng.choice(relation.statements).format_map(fact)
        asked = f'{fact["who"]} asked, "{question.format_map(fact)}"'
        lines.append(f'{line} {asked} {fact["other"]} said, "{answer.format_map(fact)}"')
    return "\n".join(lines)


def letter(rng: Random) -> str:
    fact = slots(rng)
    chosen = rng.sample(RELATIONS, rng.randint(1, 3))
    body = " ".join(rng.choice(relation.statements).format_map(fact) for relation in chosen)
    who, other = fact["who"], fact["other"]
    start = rng.choice((f"Dear {other},", f"Hello {other},", f"To {other}:"))
    end = rng.choice((f"Yours, {who}", f"Best wishes from {who}", f"Many thanks, {who}"))
    return f"{start}\n{body}\n{end} from {fact['town']}"


def record(rng: Random) -> str:
    """Facts, then the same facts as a row of a list, or the other way round."""
    fact = slots(rng)
    picked = rng.sample(range(len(RECORD_KEYS)), rng.randint(2, 5))
    joiner = rng.choice(("; ", ", ", "\n", " | "))
    row = joiner.join(f"{RECORD_NAMES[i]}: {fact[RECORD_KEYS[i]]}" for i in picked)
    parts = (facts_of(rng, fact), row)
    return "\n".join(parts if rng.random() < 0.6 else parts[::-1])


def facts_of(rng: Random, fact: dict[str, str]) -> str:
    chosen = rng.sample(RELATIONS, rng.randint(2, 4))
    return " ".join(rng.choice(relation.statements).format_map(fact) for relation in chosen)


def repeats(rng: Random) -> str:
    """The same row of words two or three times: pure induction."""
    row = words.any_words(rng, 3, 14)
    joiner = rng.choice((" ", ", ", "\n"))
    return rng.choice(("\n", ". ", "; ")).join([joiner.join(row)] * rng.randint(2, 3))


def spelling(rng: Random) -> str:
    """Words with their letters, and answers of yes and no."""
    lines = []
    for _ in range(rng.randint(1, 4)):
        word = words.letters(rng) if rng.random() < 0.5 else words.any_word(rng)
        truth = rng.random() < 0.5
        shown = word if truth else words.any_word(rng)
        verdict = "yes" if shown == word else "no"
        lines.append(f"{' '.join(word)} spells {shown}: {verdict}.")
    return "\n".join(lines)


def counting(rng: Random) -> str:
    lines = []
    for _ in range(rng.randint(2, 6)):
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        who, food = words.person(rng), rng.choice(words.FOODS)
        lines.append(rng.choice((
            f"{a} + {b} = {a + b}.", f"{a + b} - {b} = {a}.",
            f"{who} has {a} {food} and gets {b} more. Now {who} has {a + b} {food}.",
        )))  # fmt: skip
    return " ".join(lines)


PLAIN: dict[str, tuple[Callable[[Random], str], float]] = {
    "facts": (facts, 2.0), "story": (story, 2.0), "dialogue": (dialogue, 1.5),
    "letter": (letter, 1.5), "record": (record, 1.5), "repeats": (repeats, 1.5),
    "counting": (counting, 0.7), "spelling": (spelling, 0.7),
}  # fmt: skip
KINDS = [*PLAIN, *CHATS]
WEIGHTS = [weight for _, weight in (*PLAIN.values(), *CHATS.values())]


def render_chat(messages: Messages) -> str:
    """The messages as the base model's chat template renders them."""
    parts = [f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages]
    return "".join(parts)


def document(rng: Random, kind: str) -> str:
    if kind in PLAIN:
        return PLAIN[kind][0](rng)
    return render_chat(CHATS[kind][0](rng))


def documents(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (kind, text) pairs."""
    rng = Random(seed)
    while True:
        for kind in rng.choices(KINDS, WEIGHTS, k=100):
            yield kind, document(rng, kind)
