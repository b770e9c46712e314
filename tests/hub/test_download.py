"""Only files of the allow-list come here, by commit."""

import json
from pathlib import Path

import pytest

from qlora_space.core.errors import DiskFull, HubError, ModelError
from qlora_space.hub import fetch_adapter, fetch_base, fetch_tokenizer, model_facts, read_adapter
from qlora_space.hub.connection import hub_error
from tests.fake_hub import ALICE, BOB, FakeHub
from tests.hub.conftest import edited, model_of

HOSTILE = {
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"raise SystemExit",
    "tokenizer.py": b"raise SystemExit",
    "training_args.bin": b"pickle",
    "consolidated.safetensors": b"twice the bytes",
    "custom_generate/generate.py": b"raise SystemExit",
}


def test_a_base_comes_whole_and_nothing_else_comes(hub: FakeHub, tiny_base: Path) -> None:
    hub.add_model("alice/tiny", {**edited(tiny_base), **HOSTILE})
    folder = fetch_base(model_facts("alice/tiny", None, None), None)
    assert {p.name for p in folder.iterdir()} == {p.name for p in tiny_base.iterdir()}
    assert not [r for r in hub.requests if Path(r.path).name in HOSTILE]


def test_what_comes_loads_in_transformers(hub: FakeHub, tiny_base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hub.add_model("alice/tiny", tiny_base)
    folder = fetch_base(model_facts("alice/tiny", None, None), None)
    ids = AutoTokenizer.from_pretrained(folder)("hello", return_tensors="pt").input_ids
    with torch.no_grad():
        here = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        there = AutoModelForCausalLM.from_pretrained("alice/tiny", token=False)(ids).logits
    assert torch.equal(here, there)


def test_a_tokenizer_comes_without_weights(hub: FakeHub, tiny_base: Path) -> None:
    hub.add_model("alice/tiny", tiny_base)
    folder = fetch_tokenizer(model_facts("alice/tiny", None, None), None)
    assert (folder / "tokenizer.json").is_file()
    assert not list(folder.glob("*.safetensors"))


def test_the_commit_of_the_facts_is_fetched_not_todays(hub: FakeHub, tiny_base: Path) -> None:
    repo = hub.add_model("alice/tiny", tiny_base)
    facts = model_facts("alice/tiny", None, None)
    repo.commit({}, "empty it")
    folder = fetch_base(facts, None)
    weights = (tiny_base / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == weights


def test_a_folder_is_used_as_it_is(hub: FakeHub, tiny_base: Path) -> None:
    facts = model_facts(str(tiny_base), None, None)
    assert fetch_base(facts, None) == fetch_tokenizer(facts, None) == tiny_base
    assert hub.requests == []


def test_code_that_appeared_after_the_look_up_is_refused(hub: FakeHub, tiny_base: Path) -> None:
    evil = edited(tiny_base, auto_map={"AutoConfig": "evil.Config"}, model_type="evil")
    repo = hub.add_model("alice/odd", evil)
    with pytest.raises(ModelError, match="Python code"):
        fetch_tokenizer(model_of(id="alice/odd", sha=repo.head.sha), None)


def test_an_adapter_comes_without_optimizer_and_pickles(hub: FakeHub, adapter_folder: Path) -> None:
    hub.add_model("alice/adapter", adapter_folder, private=True)
    folder = fetch_adapter("alice/adapter", ALICE)
    names = {p.name for p in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert not names & {"training_args.bin", "optimizer.pt", "README.md"}
    assert fetch_adapter(str(adapter_folder), None) == adapter_folder
    with pytest.raises(ModelError, match="does not exist or is private"):
        fetch_adapter("alice/adapter", BOB)


def test_a_repository_that_is_no_adapter_is_refused(hub: FakeHub, tiny_base: Path) -> None:
    hub.add_model("alice/tiny", tiny_base)
    hub.add_model("alice/old", {"adapter_config.json": "{}", "adapter_model.bin": b"pickle"})
    for repo in ("alice/tiny", "alice/old"):
        with pytest.raises(ModelError, match="has no adapter_"):
            fetch_adapter(repo, None)
    with pytest.raises(ModelError, match="neither a Hub id"):
        fetch_adapter("../../etc/passwd", None)


def test_adapter_tokenizers_with_code_are_refused(hub: FakeHub, adapter_folder: Path) -> None:
    files = {p.name: p.read_bytes() for p in adapter_folder.iterdir()}
    evil = json.dumps({"auto_map": {"AutoTokenizer": "evil.T"}}).encode()
    hub.add_model("alice/odd", {**files, "tokenizer_config.json": evil})
    with pytest.raises(ModelError, match="Python code"):
        read_adapter("alice/odd", fetch_adapter("alice/odd", None))


@pytest.mark.parametrize("kind", [503, "drop"])
def test_a_hub_that_goes_away_during_the_download_is_a_hub_error(
    hub: FakeHub,
    tiny_base: Path,
    waits: list[float],
    kind: int | str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.add_model("alice/tiny", tiny_base)
    facts = model_facts("alice/tiny", None, None)
    hub.fail(kind, times=999)
    with pytest.raises(HubError, match=r"could not be read|is incomplete"):
        fetch_base(facts, None)


def test_a_full_disk_says_so() -> None:
    error = hub_error(OSError(28, "No space left on device"), "alice/tiny could not be read")
    assert isinstance(error, DiskFull)
