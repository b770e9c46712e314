"""Chat templates of many models with other projects' tokenizers: each is followed exactly or refused aloud.

`QLORA_SPACE_FIXTURES=FOLDER python -m tests.data.template.test_renderer_table` prints the table.
"""

import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import AddedToken

from qlora_space.data import Message, Renderer, RowProblem, Tokens, ToolCall, load_tokenizer
from qlora_space.data.messages import Messages, Style, as_template_input, split_tools
from qlora_space.data.template.loss_mask import trained_spans
from qlora_space.data.template.renderer import TurnOrder, _fold_system

_TOKEN = re.compile(
    r"<\|[\w ]+\|>|<\|?(?:start|end)_of_turn\|?>|\[/?(?:INST|TOOL_\w+)\]|<｜[^｜<>]+｜>"
)
# What templates search contents for, and what might trip them up.
_ODD = (
    *("<think>", "</think>", "<think>\n\n</think>\n\n", "<tool_response>", "</tool_response>"),
    *("<tool_call>", "<channel|>", "/no_think", "analysis", "user", "Hello", "A B", "a", "Ä", "0"),
    *("\n", "\r\n", "  ", "\t", "\u00a0", "", "{", "}", '"', "\\n", "x" * 50),
)
FIXTURES = os.environ.get("QLORA_SPACE_FIXTURES", "")
TOOL = {
    "name": "find_hat",
    "description": "Finds.",
    "parameters": {
        "type": "object",
        "properties": {"colour": {"type": "string", "description": "c"}},
    },
}
SYSTEM = Message("system", "You are a helpful assistant")
SINGLE = (Message("user", "Hello"), Message("assistant", "Hi there"))
MULTI = (
    *SINGLE,
    Message("user", "Who are you"),
    Message("assistant", "I am an assistant"),
    Message("user", "Another question"),
    Message("assistant", "Another answer"),
)
CALLS = (
    Message("tools", json.dumps([{"type": "function", "function": TOOL}])),
    Message("user", "Where is my hat?"),
    Message("assistant", "", calls=(ToolCall("find_hat", '{"colour": "red"}', "call00000"),)),
    Message("tool", "On the shelf", name="find_hat", call_id="call00000"),
    Message("assistant", "It is on the shelf."),
)
KINDS: dict[str, Messages] = {
    "single": SINGLE,
    "single, system": (SYSTEM, *SINGLE),
    "multi": MULTI,
    "multi, system": (SYSTEM, *MULTI),
    "tools": CALLS,
    "reasoning": (SINGLE[0], Message("assistant", "Hi there", reasoning="They greet me.")),
    "inline reasoning": (SINGLE[0], Message("assistant", "<think>\nGreet.\n</think>\n\nHi there")),
}
pytestmark = pytest.mark.skipif(not FIXTURES, reason="needs other projects' templates")


def templates() -> Iterator[tuple[str, str]]:
    folder = Path(FIXTURES) / "templates"
    for file in sorted(folder.rglob("*.jinja")):
        yield f"{file.parent.name}/{file.stem}", file.read_text("utf-8")
    cases = json.loads((folder / "chat-template-cases.json").read_text("utf-8"))["cases"]
    for index, case in enumerate(cases):
        yield f"case {index}: {case['name'][:40]}", case["template_str"]


def tokenizers() -> Iterator[tuple[str, Any]]:
    """Two as they are, and one that has every token that a template names."""
    folder = Path(FIXTURES) / "tokenizers"
    yield "qwen3", load_tokenizer(folder / "qwen3-tokenizer")
    yield "gpt2", load_tokenizer(folder / "gpt2-hf")
    whole = load_tokenizer(folder / "gpt2-hf")
    found = {token for _, text in templates() for token in _TOKEN.findall(text)}
    named = [AddedToken(token, special=True, normalized=False) for token in sorted(found)]
    whole.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    whole.add_special_tokens({"additional_special_tokens": named})
    yield "gpt2 with all tokens", whole


def in_process(tokenizer: Any, messages: Messages, style: Style, prompt: bool) -> str:
    """What transformers itself writes, in this process."""
    tools, turns = split_tools(messages)
    return tokenizer.apply_chat_template(
        [as_template_input(turn, style) for turn in turns],
        tools=tools,
        tokenize=False,
        add_generation_prompt=prompt,
    )


def check(renderer: Renderer, messages: Messages) -> str:
    """'markers', 'derivation' or the code of the refusal. Fails on whatever is wrong and not reported."""
    (outcome,) = renderer.tokenize([messages])
    if isinstance(outcome, RowProblem):
        return outcome.code
    tokenizer = renderer.tokenizer
    _, turns = split_tools(messages)
    pending = renderer._prepare_chat(messages)
    assert not isinstance(pending, RowProblem)
    seen = _fold_system(turns) if pending.order.folds_system else turns
    with_tools = (*messages[: len(messages) - len(turns)], *seen)
    expected = in_process(tokenizer, with_tools, pending.order.style, False)
    text = tokenizer.backend_tokenizer.decode(outcome.input_ids, skip_special_tokens=False)
    appended = pending.order.layout.appended_eos
    assert text == expected or (appended and expected.startswith(text.removesuffix(appended)))
    check_trained(tokenizer, outcome, [turn for turn in turns if turn.role == "assistant"])
    if renderer.matches_prompt:
        prompt = in_process(tokenizer, with_tools[:-1], pending.order.style, True)
        ids = renderer.prompt_ids(messages[:-1])
        assert tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == prompt
        assert outcome.input_ids[: len(ids)] == ids
    return renderer.method


def check_trained(tokenizer: Any, tokens: Tokens, answers: list[Message]) -> None:
    """Each span holds its answer and nothing of others, and ends with a token that stops generation."""
    bos = tokenizer.bos_token_id
    assert bos is None or tokens.input_ids[:2] != [bos, bos]
    runs = trained_spans(tokens.trained)
    assert len(runs) == len(answers)
    others = ("Hello", "Who are you", "Another question", "Where is my hat", "On the shelf")
    for (first, last), answer in zip(runs, answers, strict=True):
        text = tokenizer.backend_tokenizer.decode(
            tokens.input_ids[first:last], skip_special_tokens=False
        )
        content = answer.content.rpartition("</think>")[2].strip()
        assert content in text
        assert all(call.name in text and "red" in text for call in answer.calls)
        assert not any(other in text for other in (*others, SYSTEM.content))
        assert len(text) < len(answer.as_text) + len(answer.reasoning) + 150
    assert tokens.input_ids[runs[-1][1] - 1] in tokenizer.added_tokens_decoder


def table() -> Iterator[tuple[str, str, str, str]]:
    """Tokenizer, template, kind of conversation, outcome."""
    for folder, tokenizer in tokenizers():
        for name, template in templates():
            tokenizer.chat_template = template
            renderer = Renderer(tokenizer)
            for kind, messages in KINDS.items():
                try:
                    yield folder, name, kind, check(renderer, messages)
                except (AssertionError, jinja2.TemplateError) as error:
                    yield folder, name, kind, f"silent error: {str(error)[:300]}"


def test_every_template_is_followed_exactly_or_refused_aloud() -> None:
    rows = list(table())
    assert len({name for _, name, _, _ in rows}) >= 100
    assert [row for row in rows if row[3].startswith("silent")] == []
    plain = [row for row in rows if row[2].startswith(("single", "multi"))]
    followed = [row for row in plain if row[3] in ("markers", "derivation")]
    assert len(followed) > 0.9 * len(plain)


def test_what_is_predicted_of_any_template_is_what_it_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TurnOrder, "is_check_due", False)  # no predicted row is checked
    *_, (_, tokenizer) = tokenizers()
    chance = random.Random(5)
    orders: list[TurnOrder] = []
    for name, template in templates():
        tokenizer.chat_template = template
        quick, running = Renderer(tokenizer), Renderer(tokenizer, predict=False)
        rows = [_odd_conversation(chance) for _ in range(50)]
        assert quick.render(rows) == running.render(rows), name
        orders += [each for each in quick._turn_orders.values() if isinstance(each, TurnOrder)]
    assert sum(order.trace is not None for order in orders) > 0.8 * len(orders) > 300
    assert sum(order.rows_predicted for order in orders) > 2000


def _odd_conversation(chance: random.Random) -> Messages:
    turns = ["system"] * (chance.random() < 0.3) + ["user", "assistant"] * chance.choice((1, 1, 2))
    texts = ("".join(chance.choices(_ODD, k=chance.randint(0, 6))) for _ in turns)
    return tuple(map(Message, turns, texts))  # type: ignore[arg-type]


if __name__ == "__main__":
    outcomes: dict[tuple[str, str], Counter[str]] = {}
    for tokenizer_name, template_name, kind_name, outcome_name in table():
        outcomes.setdefault((tokenizer_name, kind_name), Counter())[outcome_name[:200]] += 1
        if outcome_name not in ("markers", "derivation"):
            print(tokenizer_name, "|", template_name, "|", kind_name, "|", outcome_name)  # noqa: T201
    for (tokenizer_name, kind_name), counts in outcomes.items():
        print(tokenizer_name, "|", kind_name, "|", dict(counts))  # noqa: T201
