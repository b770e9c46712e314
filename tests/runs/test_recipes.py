"""A run as a recipe: trl repeats its losses; Axolotl and LLaMA-Factory get keys that they have."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qlora_space.core.errors import RunError
from qlora_space.runs import RunFolder, view_of
from qlora_space.runs.recipes import write_recipe
from qlora_space.runs.trl_script import trl_script
from tests.train.small import go_on, small_plan, small_run

STEPS = 20
# src/axolotl/utils/schemas of axolotl 067b021 (July 2026); docs/dataset-formats/tokenized.qmd for the rows.
AXOLOTL = {
    "base_model", "revision_of_model", "load_in_4bit", "load_in_8bit", "adapter", "lora_r", "lora_alpha",
    "lora_dropout", "lora_target_modules", "peft_use_rslora", "peft_use_dora", "datasets", "sequence_len",
    "sample_packing", "pad_to_sequence_len", "micro_batch_size", "gradient_accumulation_steps", "max_steps",
    "num_epochs", "optimizer", "lr_scheduler", "learning_rate", "warmup_steps",
    "weight_decay", "max_grad_norm", "bf16", "gradient_checkpointing", "seed", "output_dir",
}  # fmt: skip
# llamafactory/hparams of 0.9.5, and transformers' TrainingArguments.
LLAMA_FACTORY = {
    "model_name_or_path", "model_revision", "stage", "do_train", "finetuning_type", "quantization_bit",
    "quantization_method", "double_quantization", "quantization_type", "lora_rank", "lora_alpha", "lora_dropout",
    "lora_target", "use_rslora", "use_dora", "dataset_dir", "dataset", "cutoff_len", "packing", "neat_packing",
    "train_on_prompt", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "optim",
    "lr_scheduler_type", "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "bf16",
    "disable_gradient_checkpointing", "seed", "output_dir",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    plan = small_plan(max_steps=STEPS, lora_dropout=0.0, eval_steps=STEPS, save_steps=0)
    run = small_run(tmp_path_factory.mktemp("home"), plan)
    assert go_on(run).kind == "finished"
    return run


def test_the_script_runs_as_it_is_and_has_the_losses_of_the_run(
    run: RunFolder, tmp_path: Path
) -> None:
    write_recipe(run, "trl", tmp_path)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "train.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    found = [each["loss"] for each in state["log_history"] if "loss" in each]
    wanted = [value for _, value in view_of(run).series("loss")]
    assert len(found) == len(wanted) == STEPS
    assert found == pytest.approx(wanted, abs=2e-3), "trl rounds to four digits"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_axolotl_gets_the_documents_with_their_masks(run: RunFolder, tmp_path: Path) -> None:
    write_recipe(run, "axolotl", tmp_path)
    config = yaml.safe_load((tmp_path / "axolotl.yaml").read_text())
    assert set(config) <= AXOLOTL
    assert config["max_steps"] == STEPS
    assert "q_proj" in config["lora_target_modules"]
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    manifest = json.loads((run.data_folder / "manifest.json").read_text())
    assert len(rows) == manifest["rows_used"]
    assert sum(len(row["input_ids"]) for row in rows) == manifest["tokens"]
    assert all(set(map(len, row.values())) == {len(row["input_ids"])} for row in rows)
    assert any(-100 in row["labels"] for row in rows)


def test_llama_factory_reads_the_dataset_by_its_columns(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="LLaMA-Factory cannot read demo"):
        write_recipe(run, "llama-factory", tmp_path)
    for format, columns, names in (
        ("messages", {"messages": "turns"}, {"messages": "turns"}),
        ("alpaca", {"instruction": "q", "output": "a"}, {"prompt": "q", "response": "a"}),
        ("prompt_completion", {"prompt": "q", "completion": "a"}, {"prompt": "q", "response": "a"}),
    ):
        plan = run.plan()
        dataset = plan.dataset.model_copy(update={"id": "alice/data", "format": format})
        plan = plan.model_copy(update={"dataset": dataset, "columns": columns})
        (run.path / "plan.json").write_text(plan.model_dump_json())
        write_recipe(run, "llama-factory", tmp_path)
        config = yaml.safe_load((tmp_path / "llama_factory.yaml").read_text())
        assert set(config) <= LLAMA_FACTORY
        assert config["quantization_bit"] == 4
        assert isinstance(config["warmup_steps"], int)
        info = json.loads((tmp_path / "dataset_info.json").read_text())["run"]
        assert info["hf_hub_url"] == "alice/data"
        assert info["columns"] == names


def test_a_base_that_others_do_not_make_is_refused(tmp_path: Path) -> None:
    run = small_run(tmp_path, small_plan(bits=2))
    run.adapter_folder.mkdir()
    (run.adapter_folder / "adapter_model.safetensors").touch()
    with pytest.raises(RunError, match="2 bits"):
        write_recipe(run, "trl", tmp_path)


def test_names_that_people_chose_end_no_string_of_the_script(run: RunFolder) -> None:
    plan = run.plan()
    names = ('"""\nraise SystemExit\n"""', "back\\Users", 'end"')
    for name in names:
        dataset = plan.dataset.model_copy(update={"id": name})
        script = trl_script(
            plan.model_copy(update={"name": name, "dataset": dataset}), 3, "all-linear"
        )
        assert not any(isinstance(node, ast.Raise) for node in ast.walk(ast.parse(script)))


@pytest.mark.parametrize("kind", ["axolotl", "llama-factory"])
def test_a_start_that_a_recipe_cannot_say_is_refused(run: RunFolder, tmp_path: Path, kind) -> None:
    plan = run.plan().model_copy(update={"adapter": "alice/start"})
    run_on = RunFolder(shutil.copytree(run.path, tmp_path / "run"))
    (run_on.path / "plan.json").write_text(plan.model_dump_json())
    with pytest.raises(RunError, match="went on from an adapter"):
        write_recipe(run_on, kind, tmp_path)
    with pytest.raises(RunError, match="is gone"):
        write_recipe(run_on, "trl", tmp_path)
