"""A base between comparisons gives its memory to a run that trains, and is loaded again for the next one."""

import threading
import time
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from qlora_space.core.comparison import Chunk, CompareRequest, Done, Loading, Question, Sampling
from qlora_space.core.errors import ModelError, RequestError
from qlora_space.core.options import Format
from qlora_space.generate.resident import ResidentModel
from qlora_space.hub import model_facts
from qlora_space.model import load_base, save_adapter
from tests.generate.test_paired import adapted
from tests.train.small import tiny_base


def request_for(adapter: Path, **changed: object) -> CompareRequest:
    request = CompareRequest(
        base=model_facts("demo", None, None),
        bits=4,
        adapter_folders=(str(adapter),),
        questions=(Question(prompt="Hello"),),
        format=Format.MESSAGES,
        sampling=Sampling(max_new_tokens=2),
    )
    return request.model_copy(update=changed)


def test_a_resident_model_is_unloaded_for_others_and_loaded_again(tmp_path: Path) -> None:
    save_adapter(adapted(4), tmp_path)
    request = request_for(tmp_path)
    resident, wanted = ResidentModel(), threading.Event()
    resident.unload_when(wanted.is_set)
    assert isinstance(list(resident.compare(request, None))[-1], Done)
    assert resident.is_loaded
    wanted.set()
    deadline = time.monotonic() + 60
    while resident.is_loaded:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert isinstance(list(resident.compare(request, None))[-1], Done)


def test_after_an_adapter_that_does_not_load_the_one_before_is_loaded_again(tmp_path: Path) -> None:
    save_adapter(adapted(4), tmp_path / "whole")
    save_adapter(adapted(4), tmp_path / "broken")
    weights = tmp_path / "broken" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    resident = ResidentModel()

    def ask(name: str) -> Done:
        replies = [*resident.compare(request_for(tmp_path / name), None)]
        assert isinstance(replies[-1], Done)
        return replies[-1]

    first = ask("whole")
    assert first.adapted != first.base
    with pytest.raises(ModelError, match="could not be loaded"):
        ask("broken")
    assert ask("whole").adapted == first.adapted


def test_another_group_size_is_another_base(tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    save_adapter(get_peft_model(load_base(tiny_base(), 16, "cpu"), config), tmp_path / "adapter")
    asked = {
        "base": model_facts(str(tiny_base()), None, None),
        "bits": 2,
        "packed_folder": str(tmp_path / "of-others"),
    }
    resident = ResidentModel()
    for group_size, is_new in ((64, True), (64, False), (32, True)):
        request = request_for(tmp_path / "adapter", group_size=group_size, **asked)
        first, *_ = resident.compare(request, None)
        assert isinstance(first, Loading) == is_new


def test_a_base_in_host_memory_answers_the_same(tmp_path: Path) -> None:
    save_adapter(adapted(4), tmp_path)
    answers = []
    for cpu_offload in (False, True):
        *_, done = ResidentModel().compare(request_for(tmp_path, cpu_offload=cpu_offload), None)
        assert isinstance(done, Done)
        answers.append((done.base, done.adapted))
    assert answers[0] == answers[1]


def test_a_prompt_beyond_the_context_is_refused_with_its_length_before_anything_is_loaded(
    tmp_path: Path,
) -> None:
    save_adapter(adapted(4), tmp_path)
    resident = ResidentModel()
    with pytest.raises(
        RequestError, match=r"^The prompt has [\d,]+ tokens, but demo reads at most [\d,]+\."
    ):
        list(
            resident.compare(
                request_for(tmp_path, questions=(Question(prompt="lantern " * 5000),)), None
            )
        )
    assert not resident.is_loaded


def test_an_answer_ends_where_the_context_does(tmp_path: Path) -> None:
    save_adapter(adapted(4), tmp_path)
    long = Sampling(max_new_tokens=8192)
    base = model_facts("demo", None, None)
    short = base.model_copy(update={"max_position_embeddings": 30})
    replies = [*ResidentModel().compare(request_for(tmp_path, base=short, sampling=long), None)]
    done = replies[-1]
    assert isinstance(done, Done)
    chunks = [reply for reply in replies if isinstance(reply, Chunk)]
    assert done.prompt_tokens < 30
    assert len(chunks) <= 2 * (30 - done.prompt_tokens) + 2
