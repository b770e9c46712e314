import pytest

from qlora_space.core import wording as words


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.005, "5 MiB"), (0.31, "0.31 GiB"), (1.34, "1.3 GiB"), (12.2, "12 GiB"), (139.8, "140 GiB")],
)
def test_memory_has_a_unit_and_two_digits(value: float, expected: str) -> None:
    assert words.gib(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.2, "under 1 s"),
        (8, "8 s"),
        (80, "1 min 20 s"),
        (120, "2 min"),
        (720, "12 min"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, expected: str) -> None:
    assert words.duration(seconds) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.2, "under 1 s"),
        (45, "45 s"),
        (89, "1.5 min"),
        (120, "2 min"),
        (720, "12 min"),
        (12_600, "3.5 h"),
        (259_200, "3 d"),
    ],
)
def test_estimates_have_one_unit(seconds: float, expected: str) -> None:
    assert words.rough_duration(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(950, "950"), (3400, "3.4k"), (1.2e6, "1.2M"), (7.6e9, "7.6B")]
)
def test_large_counts_are_short(value: float, expected: str) -> None:
    assert words.count(value) == expected


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [(0, "0 %"), (0.004, "0.4 %"), (0.94, "94 %"), (0.996, "99.6 %"), (1, "100 %")],
)
def test_percents_keep_a_digit_where_it_matters(fraction: float, expected: str) -> None:
    assert words.percent(fraction) == expected


def test_learning_rates_rates_and_ages() -> None:
    assert words.small(2e-4) == "2e-4"
    assert words.small(1.34e-5) == "1.3e-5"
    assert words.rate(3400) == "3.4k tok/s"
    assert words.age(0, now=30) == "just now"
    assert words.age(0, now=250) == "4 min ago"
    assert words.counted(1, "row") == "1 row"
    assert words.counted(1200, "row") == "1,200 rows"
    assert words.significant(float("nan")) == "–"


@pytest.mark.parametrize(
    ("expected", "shown"),
    [
        ("There is no file '/srv/data/rows.csv'.", "There is no file '…/rows.csv'."),
        ('File "/usr/lib/python3/x.py", line 3', 'File "…/x.py", line 3'),
        ("~/.cache/hub/token is missing", "…/token is missing"),
        ("See https://huggingface.co/owner/name/tree/main.", None),
        ("owner/name has train and/or test, 3/4 of it.", None),
    ],
)
def test_folders_of_the_server_are_left_out_and_addresses_are_not(
    expected: str, shown: str | None
) -> None:
    assert words.without_folders(expected) == (shown or expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Tea", "Tea 2"), ("Tea 2", "Tea 3"), ("Tea 2024", "Tea 2024 2"), ("", " 2"), ("9", "9 2")],
)
def test_a_run_made_from_another_has_the_next_name(name: str, expected: str) -> None:
    assert words.next_name(name) == expected
    assert len(words.next_name("x" * 80)) == 80


def test_a_name_has_no_character_that_cannot_be_seen() -> None:
    hidden = "safe\u202egpj.exe\u202c \x1b[31mred\x1b[0m\u200b\ttail\r\n"
    assert words.plain_name(hidden) == "safe gpj.exe [31mred [0m tail"
    assert words.plain_name("Größe 東京 🪡") == "Größe 東京 🪡"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "U+001B[31mredU+001B[0m"),
        ("exe.\u202etxt", "exe.U+202Etxt"),
        ("a\x85b\x00\u2066", "aU+0085bU+0000U+2066"),
        ("one\r\ntwo\rthree\tfour\n", "one\ntwo\nthree\tfour\n"),
        ("نص\u200c \u200f 👩\u200d💻", "نص\u200c \u200f 👩\u200d💻"),
    ],
)
def test_what_acts_unseen_has_a_sign(text: str, shown: str) -> None:
    assert words.visible(text) == shown


def test_two_names_that_look_the_same_are_the_same() -> None:
    assert words.visible_name("ans\u200bwer\n") == "ansU+200BwerU+000A"
    assert words.visible_name("答え é") == "答え é"
