"""A request names the base, the adapter and how both are loaded; nothing is loaded here."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from qlora_space.app.compare_requests import request_for_adapter, request_for_run
from qlora_space.core.comparison import BaseRecipe, CompareOptions, Question, Sampling
from qlora_space.core.errors import RunError
from qlora_space.core.options import Format
from qlora_space.core.request import TrainingRequest
from qlora_space.hub import fetch_adapter, model_facts, read_adapter
from qlora_space.runs import create_run
from tests.runs.folders import demo_run
from tests.train.conftest import demo_plan

WHO = [Question(prompt="Who?")]


def adapter_of(folder: Path, recipe: BaseRecipe | None) -> str:
    """A folder as it is published, with the base packed beside it; of others without a recipe."""
    (folder / "base").mkdir()
    save_file({}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "demo"}')
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / "base" / name).write_text("{}")
        (folder / name).write_text("{}")
    (folder / "base" / "model.safetensors").touch()
    if recipe:
        record = {"base": recipe.model_dump(mode="json")}
        (folder / "qlora_space.json").write_text(json.dumps(record))
    return str(folder)


@pytest.mark.parametrize(("bits", "is_low"), [(4, False), (2, True)])
def test_a_run_is_compared_on_the_base_that_it_was_trained_on(
    tmp_path: Path, bits: int, is_low: bool
) -> None:
    changed = {"cpu_offload": not is_low, "calibrated": False}  # packed again from the base
    plan = demo_plan(bits).model_copy(update=changed)
    run = create_run(tmp_path, TrainingRequest(), plan)
    (run.checkpoints_folder / "step-000007").mkdir(parents=True)
    request = request_for_run(
        run,
        [Question(prompt="Who?", system="Be brief.")],
        CompareOptions(strength=0.5, sampling=Sampling(max_new_tokens=3)),
    )
    assert (request.base, request.bits, request.cpu_offload) == (plan.base, bits, not is_low)
    assert request.packed_folder == (str(run.packed_folder) if is_low else "")
    assert request.adapter_folders[0].endswith("step-000007")
    (question,) = request.questions
    assert (question.prompt, question.system) == ("Who?", "Be brief.")
    assert (request.sampling.max_new_tokens, request.strength) == (3, 0.5)
    assert request.format is Format(plan.dataset.format)


def test_a_run_without_an_adapter_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no adapter yet"):
        request_for_run(demo_run(tmp_path), WHO, CompareOptions())


@pytest.mark.parametrize(
    ("recipe", "packed", "bits"),
    [
        (None, "", 4),
        (BaseRecipe(bits=16), "", 16),
        (BaseRecipe(bits=3, is_packed=True), "quantized/of-others", 3),
        (BaseRecipe(bits=2, is_packed=True, comes_along=True), "adapter/base", 2),
    ],
)
def test_an_adapter_is_asked_with_the_base_that_its_record_tells(
    tmp_path: Path, recipe: BaseRecipe | None, packed: str, bits: int
) -> None:
    (tmp_path / "adapter").mkdir()
    adapter = adapter_of(tmp_path / "adapter", recipe)
    folder = fetch_adapter(adapter, None)
    facts = read_adapter(adapter, folder)
    base = model_facts(facts.base, facts.base_revision or None, None)
    packed_bases = tmp_path / "quantized"
    request = request_for_adapter(folder, facts.recipe, base, WHO, CompareOptions(), packed_bases)
    assert (request.base.id, request.bits, request.adapter_folders) == ("demo", bits, (adapter,))
    assert request.packed_folder == (str(tmp_path / packed) if packed else "")


def test_answers_are_judged_by_the_score_of_the_run_or_by_what_is_expected(tmp_path: Path) -> None:
    plan = demo_plan(4)
    for score, wanted in (("rouge_l", "rouge_l"), ("none", "exact")):
        plan = plan.model_copy(update={"score": score})
        run = create_run(tmp_path, TrainingRequest(), plan)
        (run.checkpoints_folder / "step-000007").mkdir(parents=True)
        assert request_for_run(run, WHO, CompareOptions()).score == wanted
    numbers = [Question(prompt="How many?", expected=f"It is\n#### {i}") for i in range(5)]
    for questions, wanted in ((WHO, "exact"), ([*WHO, *numbers], "number")):
        asked = request_for_adapter(
            tmp_path, BaseRecipe(), plan.base, questions, CompareOptions(), tmp_path
        )
        assert asked.score == wanted
