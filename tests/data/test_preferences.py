from pathlib import Path
from typing import Any

import datasets
import pytest

from qlora_space.data import Detection, Message, Renderer, Row, open_source, render_prompt
from qlora_space.data.documents import detect_format
from qlora_space.data.preferences import write_preferences
from tests.data.conftest import write_jsonl

ROWS: list[dict[str, Any]] = [
    {"prompt": "What is 2 plus 2?", "chosen": "It is 4.", "rejected": "It is 5."},
    {"prompt": "Hello", "chosen": "Hello there.", "rejected": "What?"},
    {"prompt": "Same", "chosen": "Yes", "rejected": "Yes"},
    {"prompt": "Long", "chosen": "Yes", "rejected": "no " * 500},
]
CONVERSATIONS = [
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}],
    [{"role": "user", "content": "How are you"}, {"role": "assistant", "content": "I am fine."}],
]


@pytest.fixture
def renderer(tokenizers: dict[str, Any]) -> Renderer:
    return Renderer(tokenizers["chatml"])


def found_in(rows: list[dict[str, Any]], folder: Path) -> tuple[list[Row], Detection]:
    source = open_source(str(write_jsonl(folder / "a.jsonl", rows)), allow_local=True)
    return list(source.rows()), detect_format(source, source.rows(), None, None)[1]


def test_both_answers_follow_the_prompt_of_inference_and_end_their_turn(
    tmp_path: Path, renderer: Renderer
) -> None:
    rows, detection = found_in(ROWS, tmp_path)
    counts = write_preferences(tmp_path / "a.arrow", rows, detection, renderer, 256)
    assert counts == {"used": 2, "same_answers": 1, "truncated_answer": 1}
    made = list(datasets.Dataset.from_file(str(tmp_path / "a.arrow")))
    decode = renderer.tokenizer.decode
    for row, source in zip(made, ROWS, strict=False):
        prompt = (Message("user", source["prompt"]),)
        assert row["prompt_ids"] == render_prompt(renderer.tokenizer, prompt)
        assert decode(row["chosen_ids"]) == source["chosen"] + "<|im_end|>"
        assert decode(row["rejected_ids"]) == source["rejected"] + "<|im_end|>"


def test_earlier_answers_of_a_conversation_belong_to_the_prompt(
    tmp_path: Path, renderer: Renderer
) -> None:
    first, second = CONVERSATIONS
    worse = [*second[:1], {"role": "assistant", "content": "Bad."}]
    rows, detection = found_in([{"chosen": first + second, "rejected": first + worse}], tmp_path)
    counts = write_preferences(tmp_path / "a.arrow", rows, detection, renderer, 256)
    assert counts == {"used": 1}
    (row,) = datasets.Dataset.from_file(str(tmp_path / "a.arrow"))
    decode = renderer.tokenizer.decode
    assert "Yes?" in decode(row["prompt_ids"])
    assert decode(row["chosen_ids"]) == "I am fine.<|im_end|>"
    assert decode(row["rejected_ids"]) == "Bad.<|im_end|>"
