"""Scores of answers: what counts as right, by kind, and text that was made to break them."""

import random
import time
import typing

import pytest

from qlora_space.core.options import Score
from qlora_space.core.scoring import MEASURE_NAMES, SCORE_NAMES, choose_score, measured
from qlora_space.core.scoring.choice import same_choice
from qlora_space.core.scoring.number import number_in, same_number
from qlora_space.core.scoring.overlap import rouge_l, token_f1, words_of
from qlora_space.core.scoring.structured import (
    code_parses,
    field_match,
    is_code,
    is_json,
    same_calls,
    same_functions,
)

SCORES = typing.get_args(Score)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She sold 48/2 = <<48/2=24>>24.\n#### 72", "72"),
        ("#### $1,234.50", "1234.50"),
        ("#### -5 apples", "-5"),
        (r"so \boxed{3} and not 4", "3"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        ("The answer is 1,000. She has 2 left.", "1000"),
        ("**Answer:** 17 of them", "17"),
        ("First 3, then 4, which makes 7.", "7"),
        ("between 2-3", "3"),
        ("it fell to −4 degrees", "-4"),
        ("0.5", "0.5"),
        ("1,2,3", "3"),
        ("no number", None),
    ],
)
def test_the_number_that_a_text_comes_to(text: str, number: str | None) -> None:
    assert number_in(text) == number


def test_numbers_are_compared_by_value() -> None:
    assert same_number("so 72.0", "#### 72")
    assert same_number("1/2", "0.5")
    assert same_number("1e3", "1,000")
    assert not same_number("#### 73", "#### 72")
    assert not same_number("none", "none")
    assert same_number(r"\boxed{x + 1}", r"\boxed{x+1}")
    assert not same_number("1/0", "0")


@pytest.mark.parametrize(
    ("answer", "expected", "is_same"),
    [
        ("B", "B", True),
        ("(B) Paris", "B", True),
        ("B. Paris, because", "B. Paris", True),
        ("The answer is C.", "C", True),
        ("I think that it is D", "D", True),
        ("A dog is an animal", "A", False),
        ("b", "B", False),
        ("C", "B", False),
        ("Positive.", "positive", True),
        ("positive, as it says so", "positive", True),
        ("positively", "positive", False),
        ("negative", "positive", False),
        ("", "", False),
    ],
)
def test_choices_by_letter_and_by_label(answer: str, expected: str, is_same: bool) -> None:
    assert same_choice(answer, expected) is is_same


def test_json_is_compared_field_by_field() -> None:
    expected = '{"name": "Ada", "tags": ["a", "b"], "age": 3}'
    assert field_match('{"age": 3.0, "tags": ["a", "b"], "name": "Ada"}', expected) == 1
    assert field_match(f"```json\n{expected}\n```", expected) == 1
    assert field_match('{"name": "Ada"}', expected) == pytest.approx(2 / 5)
    assert field_match('{"name": "Eva", "tags": ["b", "a"], "age": 4}', expected) == 0
    assert field_match(f"Here it is: {expected}", expected) == 0
    assert field_match("{}", "{}") == 1
    assert is_json("[1]")
    assert not is_json("1")


CALL = '{"name": "weather", "arguments": {"city": "Rome", "days": 2}}'


@pytest.mark.parametrize(
    "answer",
    [
        CALL,
        f"<tool_call>\n{CALL}\n</tool_call>",
        f"[{CALL}]",
        'Let me see.\nweather({"days": 2, "city": "Rome"})',
        '{"name": "weather", "parameters": {"city": "Rome", "days": 2.0}}',
        '{"type": "function", "function": {"name": "weather", "arguments": "{\\"city\\": \\"Rome\\", \\"days\\": 2}"}}',
    ],
)
def test_a_call_is_the_same_however_a_template_writes_it(answer: str) -> None:
    expected = 'weather({"city": "Rome", "days": 2})'
    assert same_calls(answer, expected)
    assert not same_calls(answer.replace("Rome", "Bonn"), expected)
    assert same_functions(answer.replace("Rome", "Bonn"), expected)
    assert not same_functions(answer.replace("weather", "map"), expected)


def test_an_answer_without_a_call_is_right_where_none_is_expected() -> None:
    assert same_calls("It is {warm}.", "Sunny")
    assert not same_calls(CALL, "Sunny")
    assert not same_calls(f"{CALL} {CALL}", CALL)


def test_shared_words_as_squad_counts_them() -> None:
    assert token_f1("The cat!", "a cat") == 1
    assert token_f1("a red cat sat", "the cat") == pytest.approx(2 * 1 / (3 + 1))
    assert token_f1("cat cat", "cat") == pytest.approx(2 / 3)
    assert token_f1("", "...") == 1
    assert token_f1("dog", "") == 0
    assert words_of("東京 is Tokyo") == ["東", "京", "is", "tokyo"]


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    # The example of the paper, sections 3.1 and 3.2: police kill the gunman
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == pytest.approx(3 / 4)
    assert rouge_l("the gunman kill police", reference) == pytest.approx(2 / 4)
    assert rouge_l("", "") == 1
    assert rouge_l("x", "") == 0


def slow_subsequence(one: list[str], other: list[str]) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            longer = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else longer
    return table[-1][-1]


def test_the_subsequence_is_that_of_the_textbook() -> None:
    rng = random.Random(0)
    for _ in range(200):
        one, other = ([rng.choice("abcd") for _ in range(rng.randint(1, 90))] for _ in range(2))
        both = " ".join(one), " ".join(other)
        assert rouge_l(*both) == pytest.approx(
            2 * slow_subsequence(one, other) / (len(one) + len(other))
        )


def test_code_is_parsed_and_never_run() -> None:
    assert code_parses("def f(x):\n    return x")
    assert code_parses("Sure:\n```python\nimport os\n```\nDone.")
    assert code_parses("raise SystemExit")
    assert not code_parses("def f(x:")
    assert not code_parses("")
    for text in ("yes", "72", "city: Rome", "3 + 4"):
        assert not is_code(text)
    for text in ("print('x')", "x = 1", "```py\nx\n```"):
        assert is_code(text)


HOSTILE = [
    "[" * 1_000_000,
    '{"a":' * 200_000,
    "(" * 1_000_000,
    "-" * 1_000_000 + "1",
    "9" * 1_000_000,
    "#### " + "9" * 1_000_000,
    "1," * 500_000,
    "#" * 1_000_000,
    "\\boxed{" * 100_000,
    "answer is " * 100_000,
    "a " * 500_000,
    "```" * 300_000,
    "```python\n" * 100_000,
    'f({"a"' * 100_000,
    "f(" + "{" * 500_000 + "})",
    "\n" * 1_000_000,
    " " * 1_000_000,
    "\\" * 1_000_000,
    "\ud800" * 1000,
    "\x00" * 1000,
    '{"a": NaN, "b": 1e999}',
    '{"a": ' + "1" * 5000 + "}",
    "else if " * 100_000,
]


@pytest.mark.parametrize("score", SCORES)
def test_hostile_text_is_scored_in_time(score: Score) -> None:
    started = time.process_time()
    for text in HOSTILE:
        for answer, expected in ((text, "72"), ("72", text), (text, text)):
            values = measured(score, answer, expected)
            assert all(0 <= value <= 1 for value in values.values())
    assert time.process_time() - started < 3


def test_a_score_is_chosen_for_hostile_rows_in_time() -> None:
    started = time.process_time()
    for text in HOSTILE:
        choose_score([text] * 10)
    assert time.process_time() - started < 4


@pytest.mark.parametrize(
    ("answers", "score"),
    [
        ([f"It makes {i}.\n#### {i}" for i in range(30)], "number"),
        ([str(i) for i in range(30)], "number"),
        (["B", "(C) x", "A.", "D) four"] * 5, "choice"),
        (["positive", "negative", "neutral"] * 10, "choice"),
        (['{"a": 1}', '{"b": []}'] * 5, "json"),
        (['f({"a": 1})', "It is warm."] * 5, "tool_call"),
        (["def f():\n    pass", "```python\nx\n```"] * 5, "code"),
        ([f"The city of {i} Rome" for i in range(30)], "f1"),
        ([f"{i} word " * 60 for i in range(30)], "rouge_l"),
        ([], "none"),
    ],
)
def test_the_score_follows_the_answers(answers: list[str], score: str) -> None:
    assert choose_score(answers).score == score


def test_every_score_has_a_name() -> None:
    assert tuple(SCORE_NAMES) == SCORES


def test_every_measure_has_a_name_and_every_perfect_answer_is_worth_one() -> None:
    perfect = {
        "number": "#### 7", "choice": "B", "json": '{"a": [1, {"b": null}]}', "tool_call": CALL, "f1": "Rome",
        "rouge_l": "Rome is old", "code": "x = 1", "exact": "x", "none": "x",
    }  # fmt: skip
    for score in SCORES:
        values = measured(score, perfect[score], perfect[score])
        assert set(values) <= MEASURE_NAMES.keys()
        assert set(values.values()) <= {1.0}
