"""What the template would write is predicted only where it is certain; else the template is run."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_space.data import Message, Renderer, RowProblem, load_prepared, prepare
from qlora_space.data.messages import Messages
from qlora_space.data.template.renderer import TurnOrder, WrongPrediction
from qlora_space.data.template.trace import Piece, Question, TemplateTrace, parse_trace
from qlora_space.plan import Plan
from tests.data.conftest import (
    CHATML,
    GEMMA,
    TEMPLATES,
    THINKING,
    facts_of,
    make_tokenizer,
    write_jsonl,
)

ROLES = ("system", "user", "assistant", "user", "assistant")
WORDS = (
    "</think>",
    "<think>",
    "<tool>",
    "</tool>",
    "\n",
    "\r",
    "  ",
    "",
    "A",
    "a",
    "Ä",
    "B C",
    "0",
    "x" * 9,
    "index",
)
C = "m['content']"


def chatml(content: str, before: str = "", after_loop: str = "") -> str:
    """ChatML that writes this expression where the content would be."""
    return (
        "{% for m in messages %}{% set c = m['content'] %}"
        + before
        + "{{ '<|im_start|>' + m['role'] "
        "+ '\n' }}{{ " + content + " }}{{ '<|im_end|>\n' }}{% endfor %}" + after_loop + "{% if "
        "add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


# Each asks about contents in another way, and writes the probe conversation as plain ChatML would.
PREDICTED = {
    "splits reasoning off": THINKING,
    "trims": chatml("c | trim"),
    "trims lines": chatml("c.strip('\n')"),
    "trims all once lines are trimmed": chatml("c.lstrip('\n').strip()"),
    "another word for an empty content": chatml("c if c else 'nothing'"),
    "hides what is empty after trimming": chatml("c if c.strip() else 'nothing'"),
    "hides an empty turn": chatml("c", "{% if not c %}{% continue %}{% endif %}"),
    "asks how it begins": chatml("'tool' if c.startswith('<tool>') else c"),
    "asks how it ends": chatml("'tool' if c.endswith('</tool>') else c"),
    "takes it as a text": chatml("c | string"),
    "asks how it begins and ends": chatml(
        "'tool' if c.startswith('<tool>') and c.endswith('</tool>') else c"
    ),
    "asks for a whole content": chatml("'!' if c == 'A' else c"),
    "asks a list": chatml("'!' if c in ['A', 'a'] else c"),
    "replaces": chatml("c.replace('A', 'B')"),
    "replaces by a filter's method": chatml("(c.replace('A', 'B')) | trim"),
    "partitions": chatml("c.partition('</think>')[0]"),
    "splits and takes the last": chatml("c.split('</think>')[-1].lstrip('\n')"),
    "asks about the neighbour": chatml(
        "c + ('' if loop.first or 'A' not in messages[loop.index0 - 1].content else '!')"
    ),
    "asks about the last turn first": (
        "{% set ns = namespace(tool=false) %}{% for m in messages[::-1] %}"
        "{% if m.content is string and m.content.startswith('<tool>') %}{% set ns.tool = true %}"
        "{% endif %}{% endfor %}" + chatml("c + ('!' if ns.tool else '')")
    ),
    "asks what it put together": chatml(
        "c", "{% set c = 'x' + c + ' y' %}{% if 'A y' in c %}{% set c = 'other' %}{% endif %}"
    ),
    "trims what it put together": chatml("(' \n' + c + '\n ') | trim"),
    "sets a block": chatml(
        "(b | trim) + ('!' if 'A' in b else '')", "{% set b %} {{ c }} {% endset %}"
    ),
    "has a macro": "{% macro w(t) %}{{ t | trim }}{% endmacro %}" + chatml("w(c)"),
    "joins with a tilde": chatml("'' ~ c ~ (1 if c == '0' else '')"),
    "goes by a number": chatml("c ~ loop.index"),
    "asks by a filter": chatml(
        "c + ('' if [c] | select('equalto', 'A') | map('upper') | list == [] else '!')"
    ),
    "writes the date": "{{ strftime_now('%d %B %Y') }}\n" + chatml("c"),
}
RUN = {
    "goes by the length": chatml("c ~ ('' if c | length < 7 else '!')"),
    "goes by the first letter": chatml(
        "c + ('' if c[0] != 'A' else '!')", "{% if c %}", "{% endif %}"
    ).replace("{% endfor %}{% endif %}", "{% endif %}{% endfor %}"),
    "makes a letter large": chatml("c[:1] | upper + c[1:]"),
    "makes small": chatml("c | lower | replace('qx', 'Qx') | replace('zq', 'zQ')"),
    "counts": chatml("c if c.count('A') < 2 else 'many'"),
    "goes through the letters": chatml("''", "{% set c = c %}").replace(
        "{{ '' }}", "{% for letter in c %}{{ letter }}{% endfor %}"
    ),
    "is a number": chatml("c + ('!' if c | int(-1) == 0 else '')"),
    "is small": chatml("c + ('!' if c is lower else '')"),
    "writes the time": "{{ strftime_now('%p') }}\n" + chatml("c"),
    "formats": chatml("'%s' % c"),
    "formats by name": chatml("'{}'.format(c)"),
    "writes JSON": chatml("(c | tojson)[1:-1]"),
    "escapes": chatml("c | e"),
    "joins a list": chatml("[c, ''] | join('')"),
    "sorts": chatml("([c, 'Z'] | sort)[0]"),
    "looks for it elsewhere": chatml("c + ('!' if c in 'A0' else '')"),
    "looks it up": chatml("{'A': '!'}.get(c, c)"),
    "compares two": chatml("c + ('!' if not loop.first and c == messages[0].content else '')"),
    "adds it to what is escaped": chatml("('' | safe) + c"),
    "looks for a property of that name": chatml("c").replace(
        "{{ c }}", "{{ c + ('!' if loop[c] is defined else '') }}"
    ),
    "trims other line ends": chatml("c.strip('\\r\\n')"),
    "escapes only contents": chatml("c").replace(
        "{{ c }}", "{% autoescape true %}{{ c }}{% endautoescape %}"
    ),
    "escapes by a block": "{% autoescape true %}" + chatml("c") + "{% endautoescape %}",
}


def conversations(number: int = 150) -> list[Messages]:
    chance = random.Random(3)
    rows = []
    for _ in range(number):
        first, last = chance.choice(((0, 3), (1, 3), (1, 5), (0, 5)))
        texts = ("".join(chance.choices(WORDS, k=chance.randint(0, 4))) for _ in itertools.count())
        rows.append(tuple(map(Message, ROLES[first:last], texts)))
    return rows


def num_predicted(renderer: Renderer) -> int:
    orders = [each for each in renderer._turn_orders.values() if isinstance(each, TurnOrder)]
    return sum(order.rows_predicted for order in orders)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The template is not run for any row that is predicted."""
    monkeypatch.setattr(TurnOrder, "is_check_due", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", [*PREDICTED, *RUN, *TEMPLATES])
def test_what_is_predicted_is_what_the_template_writes(name: str) -> None:
    template = {**PREDICTED, **RUN, **TEMPLATES}[name]
    tokenizer = make_tokenizer(template)
    quick, running = Renderer(tokenizer), Renderer(tokenizer, predict=False)
    rows = conversations()
    written = running.render(rows)
    assert quick.render(rows) == written
    assert num_predicted(running) == 0
    assert sum(not isinstance(each, RowProblem) for each in written) > len(rows) / 10
    if name in RUN:
        assert num_predicted(quick) == 0
    else:
        assert num_predicted(quick) > len(rows) / 10


def trace_of(template: str, roles: tuple[str, ...] = ROLES[1:3]) -> TemplateTrace:
    renderer = Renderer(make_tokenizer(template))
    found = renderer._turn_order("", None, tuple(Message(role, "c") for role in roles))  # type: ignore
    assert isinstance(found, TurnOrder)
    assert found.trace is not None
    return found.trace


def test_a_trace_says_what_was_asked_and_what_was_written() -> None:
    trace = trace_of(THINKING)
    assert trace.pieces == (
        "<|im_start|>user\n",
        Piece(0),
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        Piece(1),
        "<|im_end|>\n",
    )
    assert trace.questions == (Question("contains", (Piece(1),), "</think>", answer=False),)
    assert trace.holds_for(["</think>", "Yes"])
    assert not trace.holds_for(["Why?", "</think>Yes"])


def test_a_question_about_several_pieces_is_answered_for_all_of_them_together() -> None:
    question = Question("contains", ("x", Piece(0, (("rstrip", None),)), Piece(1)), "x A", True)
    assert question.has_same_answer([" ", "A"]) is False
    assert question.has_same_answer([" A  ", "!"]) is True
    assert question.has_same_answer([" ", " A"]) is True


def test_pieces_in_another_order_or_number_or_trimmed_otherwise_are_not_the_layout() -> None:
    renderer = Renderer(make_tokenizer(GEMMA))
    found = renderer._turn_order("", None, tuple(map(Message, ROLES[1:3], "cc")))
    assert isinstance(found, TurnOrder)
    assert found.trace is not None
    before, first, between, second, after = found.trace.pieces
    assert found.trace.matches(found.layout)
    assert isinstance(first, Piece)
    for pieces in (
        (before, second, between, first, after),
        (before, first, between, first, after),
        (before, first, between, second),
        (before, first, second, between, after),
        (before, first, f"{between} ", second, after),
        (before, Piece(0), between, second, after),
        (before, Piece(0, (("lstrip", " "), ("rstrip", None))), between, second, after),
        (before, Piece(0, (*first.trims, ("rstrip", "!"))), between, second, after),
    ):
        assert not TemplateTrace(pieces, ()).matches(found.layout)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        "x",
        {"pieces": [[2, []]], "questions": []},
        {"pieces": [[-1, []]], "questions": []},
        {"pieces": [["0", []]], "questions": []},
        {"pieces": [None], "questions": []},
        {"pieces": [[0, [["upper", None]]]], "questions": []},
        {"pieces": [[0, [["strip", 1]]]], "questions": []},
        {"pieces": [[0, []]], "questions": [["__import__", [[0, []]], "os", True]]},
        {"pieces": [[0, []]], "questions": [["contains", [[0, []]], None, True]]},
        {"pieces": [[0, []]], "questions": [["contains", [[0, []]], "x"]]},
        {
            "pieces": [[0, []]],
            "questions": [["contains", [[0, []]], str(n), True] for n in range(9999)],
        },
        {"pieces": [[0, []]], "questions": [[["contains"], [[0, []]], "x", True]]},
    ],
)
def test_what_is_not_a_trace_is_refused(value: Any) -> None:
    assert parse_trace(value, num_turns=2) is None


def predict_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a question were missing in the trace."""
    monkeypatch.setattr(TemplateTrace, "holds_for", lambda self, contents: True)


def test_the_first_row_of_each_order_and_some_later_ones_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict_always(monkeypatch)
    plain = (Message("user", "Why?"), Message("assistant", "So."))
    odd = (Message("user", "Why?"), Message("assistant", "<think>Hm.</think>So."))
    tokenizer = make_tokenizer(THINKING)
    with pytest.raises(WrongPrediction):
        Renderer(tokenizer).render([odd])
    with pytest.raises(WrongPrediction):
        Renderer(tokenizer).render([plain, *[odd] * 64])
    with pytest.raises(WrongPrediction):
        Renderer(tokenizer).render([plain, (Message("system", "Be kind."), *odd)])
    with pytest.raises(WrongPrediction):
        Renderer(tokenizer).render([(*plain, *plain), (*plain, *odd)] + [(*plain, *odd)] * 63)


def test_after_a_wrong_prediction_the_template_is_run_for_every_row_of_the_dataset(
    make_plan: Callable[..., Plan],
    tmp_path: Path,
    base_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = ["So." if row < 70 else "<think>Hm.</think>So." for row in range(200)]
    rows = [{"prompt": f"Why {n}?", "completion": answer} for n, answer in enumerate(answers)]
    base = tmp_path / "thinking"
    make_tokenizer(THINKING, eos="<|im_end|>").save_pretrained(base)
    (base / "config.json").write_text("{}")
    plan = make_plan(write_jsonl(tmp_path / "rows.jsonl", rows))
    plan = plan.model_copy(update={"base": facts_of(base)})
    honest = prepare(plan, tmp_path / "honest").manifest
    predict_always(monkeypatch)
    assert prepare(plan, tmp_path / "predicted").manifest.files == honest.files
    assert load_prepared(tmp_path / "predicted").manifest.rows_used > 150


def test_turns_with_calls_or_reasoning_are_not_traced() -> None:
    renderer = Renderer(make_tokenizer(CHATML))
    messages = (Message("user", "Why?"), Message("assistant", "So.", reasoning="Hm."))
    renderer.render([messages])
    assert num_predicted(renderer) == 0


def test_contents_in_parts_are_predicted_too() -> None:
    parts = chatml("c[0]['text'] | trim")
    renderer = Renderer(make_tokenizer(parts))
    running = Renderer(make_tokenizer(parts), predict=False)
    rows = conversations(40)
    assert renderer.render(rows) == running.render(rows)
    assert num_predicted(renderer) > 20


def test_transformers_still_has_the_environment_that_tracing_needs() -> None:
    """A private function of transformers 5.17 to 5.23; without it preparing is slower, nothing else."""
    from qlora_space.data.template.tracer import tracing_template

    assert tracing_template("{{ messages }}") is not None
