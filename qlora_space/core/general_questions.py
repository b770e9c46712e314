"""Sixty short questions that have nothing to do with a dataset: what a base could answer, and may have forgotten.

Written for this project. Kinds take turns, so that the first questions are as mixed as all of them.
"""

from dataclasses import dataclass
from typing import Literal

from qlora_space.core.scoring.number import same_number
from qlora_space.core.scoring.overlap import words_of

Kind = Literal["knowledge", "instructions", "arithmetic"]


@dataclass(frozen=True)
class GeneralQuestion:
    """`accepted`: answers that are right, in lower case; `max_new_tokens` is enough for a right one in a sentence."""

    kind: Kind
    prompt: str
    accepted: tuple[str, ...]
    max_new_tokens: int = 32

    def is_right(self, answer: str) -> bool:
        """Knowledge: the answer names it, in whatever sentence. Instructions: it is that and nothing else. Arithmetic:
        it comes to that number."""
        if self.kind == "arithmetic":
            return same_number(answer, self.accepted[0])
        words = words_of(answer)
        if self.kind == "instructions":
            return any(words == words_of(right) for right in self.accepted)
        return any(_has(words, words_of(right)) for right in self.accepted)


def _has(words: list[str], part: list[str]) -> bool:
    return any(words[at : at + len(part)] == part for at in range(len(words) - len(part) + 1))


_KNOWLEDGE: tuple[tuple[str, ...], ...] = (
    ("Which city is the capital of France?", "paris"),
    ("Which planet do we live on?", "earth"),
    ("How many days are in a week?", "seven", "7"),
    ("Which animal gives us wool?", "sheep"),
    ("What do bees make that people eat?", "honey"),
    ("Which ocean lies between Europe and North America?", "atlantic"),
    ("What is frozen water called?", "ice"),
    ("Who wrote the play Romeo and Juliet?", "shakespeare"),
    ("Which star gives the Earth its light during the day?", "sun"),
    ("How many legs does a spider have?", "eight", "8"),
    ("Which language do most people in Brazil speak?", "portuguese"),
    ("Which gas do people need to breathe in order to live?", "oxygen"),
    ("On which continent is Egypt?", "africa"),
    ("What colour do you get when you mix blue and yellow?", "green"),
    ("Which month comes after April?", "may"),
    ("What is the largest animal that lives in the sea?", "whale", "whales"),
    ("Which organ pumps blood through the body?", "heart"),
    ("In which country is the city of Tokyo?", "japan"),
    ("How many minutes are in one hour?", "sixty", "60"),
    ("Which yellow metal are wedding rings often made of?", "gold"),
)
_INSTRUCTIONS: tuple[tuple[str, ...], ...] = (
    ("Answer with one word only: what is the opposite of hot?", "cold"),
    ("Answer only yes or no: can fish swim?", "yes"),
    ("Repeat this word and write nothing else: lantern", "lantern"),
    ("Write the numbers from 1 to 5 with commas between them, and nothing else.", "1, 2, 3, 4, 5"),
    ("Answer only yes or no: is ice warmer than fire?", "no"),
    ("Write the word dog three times with spaces between, and nothing else.", "dog dog dog"),
    ("Answer with one word only: what is the plural of mouse?", "mice"),
    ("Reply with exactly these two words: blue moon", "blue moon"),
    ("Answer with one letter only: which letter comes after C in the alphabet?", "d"),
    ("Answer with one word only: what is the past tense of go?", "went"),
    ("Answer only true or false: a week is longer than a day.", "true"),
    ("Write the last word of this sentence and nothing else: The boat is red", "red"),
    ("Answer with one word only: which is heavier, a feather or a brick?", "brick", "a brick"),
    ("Write the first word of this sentence and nothing else: Snow fell all night", "snow"),
    (
        "Put these in order from small to large, with commas between, and write nothing else: 9, 2, 5",
        "2, 5, 9",
    ),
    ("Answer with one word only: what is the opposite of up?", "down"),
    ("Answer only true or false: the moon is made of bread.", "false"),
    ("Write this in small letters and nothing else: RIVER", "river"),
    ("Answer with one word only: what is a young cat called?", "kitten", "a kitten"),
    ("Translate into Spanish with one word only: water", "agua"),
)
_ARITHMETIC: tuple[tuple[str, ...], ...] = (
    ("What is 7 + 5?", "12"),
    ("What is 20 - 8?", "12"),
    ("What is 6 times 4?", "24"),
    ("What is 18 divided by 3?", "6"),
    ("What is 45 + 17?", "62"),
    ("What is 100 - 37?", "63"),
    ("What is 9 times 9?", "81"),
    ("What is half of 50?", "25"),
    ("Tom has 3 apples and buys 4 more. How many apples has he?", "7"),
    ("A box holds 6 eggs. How many eggs are in 5 boxes?", "30"),
    ("What is 12 + 30 + 8?", "50"),
    ("What is 56 divided by 7?", "8"),
    ("Ana had 15 coins and lost 6. How many coins has she left?", "9"),
    ("What is 11 times 10?", "110"),
    ("What is 250 + 250?", "500"),
    ("What is 10 percent of 80?", "8"),
    ("A train leaves at 3 o'clock and drives for 4 hours. At what o'clock does it arrive?", "7"),
    ("What is 1000 - 1?", "999"),
    ("Share 24 sweets among 4 children. How many does each get?", "6"),
    ("What is 13 + 13?", "26"),
)


def _of(kind: Kind, asked: tuple[tuple[str, ...], ...]) -> list[GeneralQuestion]:
    return [GeneralQuestion(kind, prompt, tuple(accepted)) for prompt, *accepted in asked]


GENERAL_QUESTIONS: tuple[GeneralQuestion, ...] = tuple(
    question
    for three in zip(
        _of("knowledge", _KNOWLEDGE),
        _of("instructions", _INSTRUCTIONS),
        _of("arithmetic", _ARITHMETIC),
        strict=True,
    )
    for question in three
)
