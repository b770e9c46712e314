"""The demo's task: a customer's message becomes one line of a support ticket.

`python -m demo.task` writes the training, held-out and general files.
"""

# ruff: noqa: T201 - a script that reports on the terminal
import json
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from demo import words
from demo.chats import Messages, chat
from demo.text import GENERAL_SEED, documents
from qlora_space.core.demo import GENERAL_FILE, HELDOUT_FILE, TRAIN_FILE

TRAIN_SEED, TRAIN_COUNT = 11, 1000
HELDOUT_SEED, HELDOUT_COUNT = 12, 200
GENERAL_COUNT = 200

PROBLEMS = {
    "broken": ("arrived broken", "came in two pieces"),
    "not working": ("does not work", "will not start"),
    "not arrived": ("has not arrived", "never came"),
    "too small": ("is too small", "is smaller than I thought"),
    "dirty": ("is dirty", "came with stains on it"),
    "part missing": ("has a part missing", "is not complete"),
}
OPENERS = (
    "Hello, this is {who} from {town}.",
    "Hello from {town}! My name is {who}.",
    "Hi, my name is {who} and I live in {town}.",
    "Good morning, {who} from {town} here.",
    "Dear shop, I am {who} and I write from {town}.",
    "I am {who}, a customer in {town}.",
)
CLOSERS = ("Thanks, {who} from {town}.", "Yours, {who}, {town}.", "Best wishes from {town}, {who}.")
COMPLAINTS = (
    "The {item} {problem}.",
    "The {item} I bought on {day} {problem}.",
    "I ordered {a_item} and it {problem}.",
    "My new {item} {problem}.",
    "I paid {number} coins for {a_item}, but it {problem}.",
    "I am sorry to say that the {item} {problem}.",
)
ASIDES = ("", "", "", "My friend {other} has the same one.", "It was a gift for {other}.")
HURRY = {
    "yes": ("Please hurry!", "I need it today.", "This is urgent."),
    "no": ("There is no rush.", "Take your time.", ""),
}
TICKET = "customer: {who} | city: {town} | item: {item} | problem: {label} | urgent: {urgent}"


def split_words(pool: list[str], unseen: bool) -> list[str]:
    """Every fifth word is reserved for the held-out file."""
    return [word for at, word in enumerate(pool) if (at % 5 == 0) == unseen]


def values(rng: Random, unseen: bool) -> dict[str, str]:
    """Four in ten people and towns have made-up names."""

    def pick(pool: list[str]) -> str:
        return rng.choice(split_words(pool, unseen))

    def name(pool: list[str]) -> str:
        return pick(pool) if rng.random() < 0.6 else words.made_up_word(rng).capitalize()

    item = f"{rng.choice(words.COLOURS)} {pick(words.THINGS)}"
    label, urgent = rng.choice(list(PROBLEMS)), rng.choice(list(HURRY))
    return {
        "who": name(words.FIRST_NAMES), "other": name(words.FIRST_NAMES), "town": name(words.TOWNS),
        "item": item, "a_item": words.with_article(item), "day": rng.choice(words.DAYS),
        "number": str(rng.randint(2, 99)), "label": label, "problem": rng.choice(PROBLEMS[label]),
        "urgent": urgent, "hurry": rng.choice(HURRY[urgent]),
    }  # fmt: skip


def message_and_ticket(rng: Random, unseen: bool) -> Messages:
    """The customer's name stands at the start or at the end of the message."""
    value = values(rng, unseen)
    parts = [rng.choice(COMPLAINTS), rng.choice(ASIDES), "{hurry}"]
    named_first = rng.random() < 0.7
    parts = [rng.choice(OPENERS), *parts] if named_first else [*parts, rng.choice(CLOSERS)]
    lines = [part.format_map(value) for part in parts]
    return chat(" ".join(line for line in lines if line), TICKET.format_map(value))


def task_rows(seed: int, count: int, unseen_share: float) -> list[dict[str, Any]]:
    """Distinct messages; `unseen_share` of them use names and things that the training file never has."""
    rng = Random(seed)
    found: dict[str, Messages] = {}
    while len(found) < count:
        messages = message_and_ticket(rng, rng.random() < unseen_share)
        found.setdefault(messages[0]["content"], messages)
    return [{"messages": messages} for messages in found.values()]


def train_rows() -> list[dict[str, Any]]:
    return task_rows(TRAIN_SEED, TRAIN_COUNT, 0.0)


def heldout_rows() -> list[dict[str, Any]]:
    return task_rows(HELDOUT_SEED, HELDOUT_COUNT, 0.5)


def general_rows() -> list[dict[str, Any]]:
    """Text of the same kind as the base's training text, from a seed that it was not trained on."""
    return [{"text": text} for _, text in islice(documents(GENERAL_SEED), GENERAL_COUNT)]


def lines_of(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def all_files() -> dict[Path, str]:
    return {
        TRAIN_FILE: lines_of(train_rows()),
        HELDOUT_FILE: lines_of(heldout_rows()),
        GENERAL_FILE: lines_of(general_rows()),
    }


if __name__ == "__main__":
    for path, content in all_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(path)
