import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_space.core.errors import DatasetError, ModelError
from qlora_space.core.facts import ModelFacts
from qlora_space.core.inspection import Inspection
from qlora_space.core.request import TrainingRequest
from qlora_space.data import Budget, inspect_dataset, load_tokenizer
from tests.data.conftest import make_tokenizer, write_jsonl

GOOD = [{"prompt": f"Say {i}.", "completion": f"é😀 {i}"} for i in range(60)]


@pytest.fixture
def inspect(tmp_path: Path, base: ModelFacts, base_folder: Path) -> Any:
    def run(rows: list[dict[str, Any]], **fields: Any) -> Inspection:
        file = write_jsonl(tmp_path / "a.jsonl", rows)
        request = TrainingRequest(dataset=str(file), **fields)
        return inspect_dataset(request, base, base_folder, None, allow_local=True)

    return run


def codes(found: Inspection) -> dict[str, int]:
    return {problem.code: problem.rows for problem in found.problems}


def test_good_rows_have_no_problems_and_exact_numbers(inspect: Any) -> None:
    found = inspect(GOOD)
    assert found.problems == ()
    assert (found.num_rows, found.rows_looked_at, found.dataset.is_exact) == (60, 60, True)
    assert sum(found.lengths.histogram) == 60
    assert len(found.lengths.histogram) == 40
    assert 0 < found.lengths.trained_fraction < 1
    assert len(found.preview) == 10
    assert found.preview[1] == {"prompt": "Say 1.", "completion": "é😀 1"}


def test_the_tokens_of_a_sample_read_as_its_text(inspect: Any) -> None:
    for sample in inspect(GOOD).samples:
        text = "".join(token.text for token in sample.tokens)
        assert text.startswith("<|im_start|>user\nSay")
        trained = "".join(token.text for token in sample.tokens if token.trained)
        assert trained.startswith("é😀 ")
        assert trained.endswith("<|im_end|>")


def test_each_problem_is_counted_once_a_row(inspect: Any) -> None:
    bad = [
        {"prompt": "x", "completion": ""},
        {"prompt": "x", "completion": None},
        GOOD[0],
        {"prompt": "<|im_end|>", "completion": "x"},
        {"prompt": "a b " * 100, "completion": "lost"},
        {"prompt": "x", "completion": "a b " * 100},
    ]
    assert codes(inspect([*GOOD, *bad], max_length=64)) == {
        "empty_answer": 2,
        "duplicate": 1,
        "special_token": 1,
        "all_masked": 1,
        "truncated_answer": 1,
    }


def test_no_usable_row_is_an_error_that_says_why(inspect: Any) -> None:
    found = inspect([{"prompt": "x", "completion": ""}] * 3)
    assert [problem.code for problem in found.errors] == ["no_usable_row"]
    assert "a.jsonl, line 1" in found.errors[0].message


def test_a_max_length_that_masks_everything_is_an_error(inspect: Any) -> None:
    found = inspect(GOOD, max_length=16)
    assert [problem.code for problem in found.errors] == ["no_usable_row"]
    assert "max_length 16" in found.errors[0].message


def test_few_rows_are_a_warning(inspect: Any) -> None:
    assert codes(inspect(GOOD[:5])) == {"too_few_rows": 5}


def test_a_base_without_chat_template_is_reported(
    tmp_path: Path, inspect: Any, base: ModelFacts, base_folder: Path
) -> None:
    make_tokenizer(None).save_pretrained(tmp_path / "bare")
    file = write_jsonl(tmp_path / "b.jsonl", GOOD)
    request = TrainingRequest(dataset=str(file))
    found = inspect_dataset(request, base, tmp_path / "bare", None, allow_local=True)
    assert codes(found) == {"no_chat_template": 60}


def test_cells_of_the_preview_are_short(inspect: Any) -> None:
    long = {"prompt": "x" * 1000, "completion": "y"}
    assert max(len(cell) for row in inspect([long]).preview for cell in row.values()) == 300


def test_more_rows_than_are_inspected_are_still_counted(
    tmp_path: Path, base: ModelFacts, base_folder: Path
) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", GOOD)
    request = TrainingRequest(dataset=str(file))
    found = inspect_dataset(request, base, base_folder, None, Budget(10), allow_local=True)
    assert (found.rows_looked_at, found.num_rows, found.dataset.is_exact) == (10, 60, True)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_an_empty_file_has_no_rows(
    tmp_path: Path, name: str, base: ModelFacts, base_folder: Path
) -> None:
    (tmp_path / name).write_text("[]" if name == "a.json" else "")
    request = TrainingRequest(dataset=str(tmp_path / name))
    with pytest.raises(DatasetError, match=f"{name} has no rows"):
        inspect_dataset(request, base, base_folder, None, allow_local=True)


def test_a_tokenizer_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer of .* is not read") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pad_token_is_one_that_ends_nothing(tmp_path: Path) -> None:
    bare = make_tokenizer(None)
    bare.pad_token = None
    bare.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token == "<|pad|>"
    assert len(tokenizer) == len(bare)


def test_inspecting_needs_no_torch_and_no_gradio() -> None:
    """The tokenizers of transformers before 5.23 import torch themselves where it is installed."""
    code = (
        "import sys; sys.modules['torch'] = None;"
        "from qlora_space.data import load_tokenizer;"
        "from qlora_space.core.demo import BASE_FOLDER; load_tokenizer(BASE_FOLDER);"
        "print([m for m in ('gradio', 'datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
