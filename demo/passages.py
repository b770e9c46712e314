"""Statements about the invented world, each with the questions that it answers."""

from random import Random
from typing import NamedTuple

from demo import words

Slots = dict[str, str]


class Relation(NamedTuple):
    """Ways to say one thing, and (question, answer) pairs on it, as templates over slots."""

    statements: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]


RELATIONS = (
    Relation(
        ("{who} lives in {town}.", "{who} comes from {town}.", "The home of {who} is {town}."),
        (("Where does {who} live?", "{town}"), ("Who lives in {town}?", "{who}")),
    ),
    Relation(
        ("{who} bought {a_item} on {day}.", "On {day} {who} bought {a_item}."),
        (
            ("What did {who} buy?", "{a_item}"),
            ("Who bought the {item}?", "{who}"),
            ("When did {who} buy the {item}?", "on {day}"),
        ),
    ),
    Relation(
        ("The {item} costs {number} coins.", "The price of the {item} is {number} coins."),
        (("How much is the {item}?", "{number} coins"), ("What costs {number} coins?", "{item}")),
    ),
    Relation(
        ("The {item} is {place}.", "You can find the {item} {place}."),
        (("Where is the {item}?", "{place}"), ("What is {place}?", "the {item}")),
    ),
    Relation(
        ("{who} works as a {job} in {town}.", "In {town} {who} is a {job}."),
        (("What does {who} do?", "{job}"), ("Where does {who} work?", "{town}")),
    ),
    Relation(
        ("{who} has a {animal} called {pet}.", "{pet} is the {animal} of {who}."),
        (("What is the {animal} of {who} called?", "{pet}"), ("Who has a {animal}?", "{who}")),
    ),
    Relation(
        ("{who} gave the {item} to {other}.", "{other} got the {item} from {who}."),
        (("Who gave away the {item}?", "{who}"), ("Who has the {item} now?", "{other}")),
    ),
    Relation(
        ("{who} likes {food}.", "{who} often eats {food}."),
        (("What does {who} like?", "{food}"), ("Who likes {food}?", "{who}")),
    ),
    Relation(
        (
            "{who} went from {town} to {goal} by {vehicle}.",
            "By {vehicle} {who} left {town} for {goal}.",
        ),
        (("Where did {who} go?", "{goal}"), ("Where did {who} start?", "{town}")),
    ),
    Relation(
        ("The {item} of {who} is {quality}.", "{who} has {a_item}, and it is {quality}."),
        (("How is the {item}?", "{quality}"), ("What does {who} own?", "{a_item}")),
    ),
    Relation(
        ("{who} met {other} in {town} on {day}.", "On {day} {who} saw {other} in {town}."),
        (("Where did {who} meet {other}?", "{town}"), ("Whom did {who} meet?", "{other}")),
    ),
    Relation(
        ("{who} sells {food} for {number} coins.", "For {number} coins {who} sells {food}."),
        (("What does {who} sell?", "{food}"), ("Who sells {food}?", "{who}")),
    ),
    Relation(
        ("{who} is {number} years old.", "The age of {who} is {number}."),
        (("How old is {who}?", "{number}"), ("Who is {number} years old?", "{who}")),
    ),
    Relation(
        ("The {thing} of {who} is {colour}.", "{who} painted the {thing} {colour}."),
        (
            ("What colour is the {thing} of {who}?", "{colour}"),
            ("What is {colour}?", "the {thing}"),
        ),
    ),
    Relation(
        ("The customer {who} from the city of {town} wrote on {day}.",),
        (("Which customer wrote?", "{who}"), ("Which city is it?", "{town}")),
    ),
    Relation(
        ("The {item} arrived {fault}.", "{who} sent back {a_item} because it was {fault}."),
        (("What is the problem with the {item}?", "{fault}"), ("What was {fault}?", "the {item}")),
    ),
    Relation(
        (
            "My name is {who} and I am from {town}.",
            "I am {who}, and I live in {town}.",
            "This is a letter by {who} of {town}.",
        ),
        (("Who is writing?", "{who}"), ("Where is {who} from?", "{town}")),
    ),
    Relation(
        (
            "I paid {number} coins for my {item}.",
            "My {item} was {number} coins on {day}.",
            "The {item} that I have is {quality}.",
        ),
        (("What do I have?", "{a_item}"), ("Which thing is meant?", "the {item}")),
    ),
)


def slots(rng: Random) -> Slots:
    """One value for every slot of the templates."""
    thing, colour = words.thing(rng), rng.choice(words.COLOURS)
    item = f"{colour} {thing}"
    return {
        "who": words.person(rng), "other": words.person(rng), "pet": words.person(rng),
        "town": words.town(rng), "goal": words.town(rng), "thing": thing, "colour": colour,
        "item": item, "a_item": words.with_article(item), "number": str(rng.randint(2, 99)),
        "day": rng.choice(words.DAYS), "job": rng.choice(words.JOBS),
        "animal": rng.choice(words.ANIMALS), "food": rng.choice(words.FOODS),
        "place": rng.choice(words.PLACES), "vehicle": rng.choice(words.VEHICLES),
        "quality": rng.choice(words.QUALITIES), "fault": rng.choice(words.FAULTS),
    }  # fmt: skip


def statement(rng: Random) -> str:
    return rng.choice(rng.choice(RELATIONS).statements).format_map(slots(rng))


class Passage(NamedTuple):
    """A few statements on different people, with one question asked on one of them."""

    text: str
    question: str
    answer: str
    source: str


def passage(rng: Random, most: int = 5) -> Passage:
    """Few relations are drawn, so that like statements compete and the question decides."""
    relations = rng.sample(RELATIONS, rng.randint(1, 3))
    facts = [(rng.choice(relations), slots(rng)) for _ in range(rng.randint(1, most))]
    lines = [rng.choice(relation.statements).format_map(fact) for relation, fact in facts]
    chosen = rng.randrange(len(facts))
    question, answer = rng.choice(facts[chosen][0].questions)
    fact = facts[chosen][1]
    return Passage(
        " ".join(lines), question.format_map(fact), answer.format_map(fact), lines[chosen]
    )
