"""A publication is proved by a fresh download; damage that is planted in it is found, each kind by its own sentence."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file

from qlora_space.core.proof import Proof
from qlora_space.hub.card.how_to_load import loading_code
from qlora_space.hub.publish import publish_adapter
from qlora_space.model import fresh_load
from qlora_space.model.proof import (
    Expected,
    PublishedAs,
    ask,
    download_afresh,
    expected_of,
    proof_of,
    prove,
)
from qlora_space.runs import RunFolder
from tests.fake_hub import ALICE, FakeHub, StoredFile
from tests.train.small import go_on, small_plan, small_run, tiny_base

REPO = "alice/proved"
Damage = Callable[[dict[str, bytes]], dict[str, bytes]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = small_run(tmp_path_factory.mktemp("home"), small_plan(learning_rate=5e-2))
    assert go_on(run).kind == "finished"
    return run


@pytest.fixture(scope="module")
def expected(run: RunFolder) -> Expected:
    return expected_of(run, tiny_base(), PublishedAs(REPO, ""))


def published(run: RunFolder) -> PublishedAs:
    done = publish_adapter(run.adapter_folder, "# Card", REPO, True, ALICE, run.id)
    return PublishedAs(REPO, done.commit)


def damaged(hub: FakeHub, damage: Damage) -> PublishedAs:
    repo = hub.repo("model", REPO)
    changed = {
        name: StoredFile(content, repo.head.files[name].is_lfs)
        for name, content in damage(repo.files).items()
    }
    return PublishedAs(REPO, repo.commit({**repo.head.files, **changed}, "damage").sha)


def loaded(
    run: RunFolder, expected: Expected, to: PublishedAs, scratch: Path, base: Path | None = None
) -> Proof:
    """As `prove`, in this process: the folder of the download stands for the repository's name."""
    folder = download_afresh(to.repo, run.plan(), scratch, ALICE)
    code = loading_code(run.plan(), str(folder), for_16_bit=False, with_base=False)
    ask(code.replace("path/to/the/base", str(base or tiny_base())), scratch, expected)
    fresh_load.main(scratch)
    found = json.loads((scratch / "found.json").read_text())
    return proof_of(to, folder.name, expected, found, scratch)


def test_what_was_published_is_proved_by_a_process_of_its_own(
    run: RunFolder, hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    to = published(run)
    *_, proof = prove(run, to, ALICE)
    assert isinstance(proof, Proof)
    assert proof.is_proved, (proof.problems, caplog.text)
    assert (proof.repo, proof.commit) == (REPO, to.commit)
    assert proof.agreement is not None
    assert proof.agreement.top1 == 1.0
    assert proof.prompts == proof.same_prompts == 2
    assert "100 % of" in proof.in_words()


def one_weight(files: dict[str, bytes]) -> dict[str, bytes]:
    weights = load(files["adapter_model.safetensors"])
    next(iter(weights.values()))[0, 0] += 1e-3
    return {"adapter_model.safetensors": save(weights, {"format": "pt"})}


def not_a_number(files: dict[str, bytes]) -> dict[str, bytes]:
    content = bytearray(files["adapter_model.safetensors"])
    content[-4:] = struct.pack("<f", float("nan"))
    return {"adapter_model.safetensors": bytes(content)}


def other_template(files: dict[str, bytes]) -> dict[str, bytes]:
    text = files["chat_template.jinja"].decode()
    return {"chat_template.jinja": text.replace("assistant", "helper").encode()}


def no_eos(files: dict[str, bytes]) -> dict[str, bytes]:
    config = json.loads(files["tokenizer_config.json"])
    config["eos_token"] = None
    return {"tokenizer_config.json": json.dumps(config).encode()}


def other_scale(files: dict[str, bytes]) -> dict[str, bytes]:
    config = json.loads(files["adapter_config.json"])
    return {
        "adapter_config.json": json.dumps(
            config | {"lora_alpha": 4 * config["lora_alpha"]}
        ).encode()
    }


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (one_weight, "or their scales"),
        (not_a_number, "no finite numbers"),
        (other_template, "writes 2 of 2 held-out prompts in another way"),
        (no_eos, "ends answers with token None"),
        (other_scale, "or their scales"),
    ],
)
def test_planted_damage_is_found(
    damage: Damage, words: str, run: RunFolder, expected: Expected, hub: FakeHub, tmp_path: Path
) -> None:
    published(run)
    proof = loaded(run, expected, damaged(hub, damage), tmp_path)
    assert not proof.is_proved
    assert words in proof.in_words()


def test_another_base_is_found(
    run: RunFolder, expected: Expected, hub: FakeHub, tmp_path: Path
) -> None:
    other = tmp_path / "base"
    shutil.copytree(tiny_base(), other)
    weights = load_file(other / "model.safetensors")
    torch.manual_seed(9)
    weights = {
        name: weight + 0.05 * torch.randn(weight.shape).to(weight.dtype)
        for name, weight in weights.items()
    }
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    proof = loaded(run, expected, published(run), tmp_path, other)
    assert "weights or base are others" in proof.in_words()


def test_a_commit_that_came_after_is_found(
    run: RunFolder, expected: Expected, hub: FakeHub, tmp_path: Path
) -> None:
    to = published(run)
    damaged(hub, lambda files: {"README.md": b"# Another card"})
    assert "newest commit" in loaded(run, expected, to, tmp_path).in_words()


def test_undamaged_it_is_proved_in_the_same_way(
    run: RunFolder, expected: Expected, hub: FakeHub, tmp_path: Path
) -> None:
    """Else the damage would prove nothing."""
    proof = loaded(run, expected, published(run), tmp_path)
    assert proof.is_proved, proof.problems


def test_code_that_does_not_load_is_a_mismatch(run: RunFolder, hub: FakeHub) -> None:
    published(run)
    to = damaged(hub, lambda files: {"adapter_config.json": b"{"})
    *_, proof = prove(run, to, ALICE)
    assert isinstance(proof, Proof)
    assert proof.agreement is None
    assert "does not load it" in proof.in_words()
