"""A run becomes a model that says how far it is from the adapter on its base."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_space.core.errors import RequestError, RunError
from qlora_space.core.export import EXPORT_FILE, Exported, Exporting, ExportOptions
from qlora_space.model.export_run import export_run
from qlora_space.runs import RunFolder
from tests.train.small import go_on, small_plan, small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = small_run(tmp_path_factory.mktemp("home"), small_plan(learning_rate=5e-2))
    assert go_on(run).kind == "finished"
    return run


def exported(run: RunFolder, folder: Path, **options: object) -> Exported:
    *progress, done = export_run(run, ExportOptions.model_validate(options), folder, None)
    assert all(isinstance(each, Exporting) for each in progress)
    assert isinstance(done, Exported)
    return done


def test_the_merged_model_says_what_the_adapter_says(run: RunFolder, tmp_path: Path) -> None:
    done = exported(run, tmp_path / "merged")
    found = done.agreement
    assert found is not None
    assert found.tokens > 20
    assert found.top1 > 0.97
    assert found.kl is not None
    assert found.kl < 1e-3
    assert done == Exported.model_validate_json((tmp_path / "merged" / EXPORT_FILE).read_bytes())
    assert done.num_bytes == sum((tmp_path / "merged" / f).stat().st_size for f in done.files)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == (run.adapter_folder / "chat_template.jinja").read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert set(run.stop_token_ids()) <= set(model.generation_config.eos_token_id)


def test_on_the_original_base_it_is_further_away_and_says_so(
    run: RunFolder, tmp_path: Path
) -> None:
    near = exported(run, tmp_path / "a").agreement
    far = exported(run, tmp_path / "b", onto="original").agreement
    assert near is not None
    assert far is not None
    assert far.kl > 4 * near.kl  # type: ignore[operator]


def test_packed_to_nf4_it_keeps_what_was_learned(run: RunFolder, tmp_path: Path) -> None:
    """Packing the base as it was trained on once more would give back the base: its weights are on the grid."""
    done = exported(run, tmp_path / "nf4", format="merged-nf4")
    config = json.loads((tmp_path / "nf4" / "config.json").read_text())
    assert config["quantization_config"]["load_in_4bit"]
    stored = load_file(tmp_path / "nf4" / "model.safetensors")
    assert stored["model.layers.0.mlp.up_proj.weight"].dtype is torch.uint8
    found = done.agreement
    assert found is not None
    assert found.loss < found.adapter_loss + 0.1  # type: ignore[operator]
    with pytest.raises(RequestError, match="rounds the adapter away"):
        exported(run, tmp_path / "no", format="merged-nf4", onto="trained")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("bits", [4, 2])
def test_packed_in_gptqs_format_it_is_one_model_that_is_read_as_such(
    run: RunFolder, tmp_path: Path, bits: int
) -> None:
    done = exported(run, tmp_path / "gptq", format="merged-gptq", gptq_bits=str(bits))
    config = json.loads((tmp_path / "gptq" / "config.json").read_text())
    stated = config["quantization_config"]
    assert (stated["quant_method"], stated["bits"]) == ("gptq", bits)
    stored = load_file(tmp_path / "gptq" / "model.safetensors")
    assert "model.layers.0.mlp.up_proj.qweight" in stored
    assert "model.layers.0.mlp.up_proj.weight" not in stored
    assert "lm_head.weight" not in stored
    generation = json.loads((tmp_path / "gptq" / "generation_config.json").read_text())
    assert set(run.stop_token_ids()) <= set(generation["eos_token_id"])
    AutoTokenizer.from_pretrained(tmp_path / "gptq")
    packed = done.agreement
    nf4 = exported(run, tmp_path / "nf4", format="merged-nf4").agreement
    assert packed is not None
    assert nf4 is not None
    assert packed.kl < nf4.kl / (5 if bits == 4 else 1)  # type: ignore[operator]


def test_without_an_adapter_there_is_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished adapter"):
        exported(small_run(tmp_path), tmp_path / "merged")


def test_what_was_not_compared_says_why(run: RunFolder, tmp_path: Path) -> None:
    done = exported(run, tmp_path / "merged", measure=False)
    assert done.agreement is None
    assert "not asked for" in done.in_words()
