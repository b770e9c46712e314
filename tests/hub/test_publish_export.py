"""An export is published to a repository of its own: with its figures, what it is made of, and nothing stale."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from qlora_space.core.errors import HubError, RunError
from qlora_space.core.export import (
    EXPORT_FILE,
    Agreement,
    Exported,
    ExportOptions,
    ModelFormat,
)
from qlora_space.core.request import TrainingRequest
from qlora_space.hub.publish_run import publish_run
from qlora_space.hub.target import read_target
from qlora_space.runs import PushRequest, RunFolder
from tests.fake_hub import ALICE, FakeHub
from tests.hub.conftest import model_of, plan_of, report_of
from tests.runs.folders import demo_run

AGREEMENT = Agreement(
    tokens=400, top1=0.985, kl=0.0012, largest_logit_difference=0.25, loss=0.51, adapter_loss=0.5
)
WEIGHTS = {"config.json": b"{}", "model.safetensors": b"w" * 50}


@pytest.fixture
def run(tmp_path: Path, adapter_folder: Path) -> RunFolder:
    found = demo_run(tmp_path)
    shutil.copytree(adapter_folder, found.adapter_folder)
    found.report_file.write_text(report_of().model_dump_json())
    plan = plan_of(TrainingRequest(bits=4))
    (found.path / "plan.json").write_text(plan.model_dump_json())
    return RunFolder(found.path)


def exported(
    run: RunFolder,
    kind: ModelFormat = "merged",
    files: Mapping[str, bytes] = WEIGHTS,
    agreement: Agreement = AGREEMENT,
) -> None:
    folder = run.exports_folder / kind
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    done = Exported(
        options=ExportOptions(format=kind), dtype="bfloat16", num_bytes=1, files=tuple(files), agreement=agreement,
    )  # fmt: skip
    (folder / EXPORT_FILE).write_text(done.model_dump_json())


def front_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize(
    ("kind", "relation", "bases", "code"),
    [
        ("merged", "merge", ["alice/base", "alice/tea"], 'from_pretrained("alice/new", dtype="bfloat16")'),
        ("merged-nf4", "quantized", ["alice/base", "alice/tea"], 'from_pretrained("alice/new")'),
        ("gguf", "quantized", ["alice/base", "alice/tea"], "llama-server -hf alice/new"),
        ("gguf-adapter", "adapter", ["alice/base"], "--lora adapter/adapter.gguf"),
    ],
)  # fmt: skip
def test_every_format_has_a_repository_with_its_figures_and_what_it_is_made_of(
    hub: FakeHub, run: RunFolder, kind: ModelFormat, relation: str, bases: list[str], code: str
) -> None:
    publish_run(run, PushRequest(repo="alice/tea", private=False), ALICE)
    exported(run, kind)
    publish_run(run, PushRequest(repo="alice/new", what=kind, private=False), ALICE)
    repo = hub.repo("model", "alice/new")
    assert len(repo.commits) == 2
    assert not repo.private
    assert repo.files.items() >= WEIGHTS.items()
    assert EXPORT_FILE not in repo.files
    card = repo.files["README.md"].decode()
    front = front_of(card)
    assert (front["base_model"], front["base_model_relation"]) == (bases, relation)
    assert front["license"] == "apache-2.0"
    assert code in card
    assert "KL 0.0012 nats a token" in card
    assert "held-out perplexity" in card
    record = json.loads(repo.files["qlora_space.json"])
    assert (record["what"], record["run_id"]) == (kind, run.id)
    assert record["export"]["agreement"]["kl"] == 0.0012
    assert [(p.what, p.repo) for p in run.all_publications()] == [
        ("adapter", "alice/tea"),
        (kind, "alice/new"),
    ]


def test_a_card_for_all_names_no_private_adapter(hub: FakeHub, run: RunFolder) -> None:
    publish_run(run, PushRequest(repo="alice/secret"), ALICE)
    exported(run)
    publish_run(run, PushRequest(repo="alice/new", what="merged", private=False), ALICE)
    card = hub.repo("model", "alice/new").files["README.md"].decode()
    assert "alice/secret" not in card
    assert front_of(card)["base_model"] == ["alice/base"]


def test_weights_that_are_not_part_of_it_any_more_go_and_files_of_others_stay(
    hub: FakeHub, run: RunFolder
) -> None:
    shards = {
        "config.json": b"{}",
        "model-1.safetensors": b"a" * 50,
        "model-2.safetensors": b"b" * 50,
    }
    exported(run, files=shards)
    push = PushRequest(repo="alice/new", what="merged", private=False)
    publish_run(run, push, ALICE)
    repo = hub.repo("model", "alice/new")
    repo.commit({**repo.head.files, "notes.md": repo.head.files["config.json"]}, "By hand")
    exported(run)
    publish_run(run, push, ALICE)
    assert set(repo.files) == {
        ".gitattributes", "README.md", "notes.md", "qlora_space.json", *WEIGHTS,
    }  # fmt: skip
    assert len(repo.commits) == 4


def test_it_never_goes_into_the_adapters_repository_nor_the_adapter_into_its(
    hub: FakeHub, run: RunFolder
) -> None:
    publish_run(run, PushRequest(repo="alice/tea", private=False), ALICE)
    exported(run)
    before = hub.repo("model", "alice/tea").files
    with pytest.raises(HubError, match="something else of it"):
        publish_run(run, PushRequest(repo="alice/tea", what="merged", private=False), ALICE)
    assert hub.repo("model", "alice/tea").files == before
    publish_run(run, PushRequest(repo="alice/new", what="merged", private=False), ALICE)
    with pytest.raises(HubError, match="something else of it"):
        publish_run(run, PushRequest(repo="alice/new", private=False), ALICE)
    assert read_target("alice/new", run.id, ALICE).state == "foreign"
    assert read_target("alice/new", run.id, ALICE, "merged").state == "ours"


def test_what_is_missing_stale_or_not_sound_is_refused_before_any_request(
    hub: FakeHub, run: RunFolder
) -> None:
    push = PushRequest(repo="alice/new", what="merged")
    with pytest.raises(RunError, match="was not exported as merged"):
        publish_run(run, push, ALICE)
    exported(run, agreement=AGREEMENT.model_copy(update={"kl": None}))
    with pytest.raises(HubError, match="no finite numbers"):
        publish_run(run, push, ALICE)
    exported(run)
    (run.exports_folder / "merged" / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"has no model.safetensors any more"):
        publish_run(run, push, ALICE)
    exported(run)
    later = (run.exports_folder / "merged" / EXPORT_FILE).stat().st_mtime + 10
    os.utime(run.adapter_folder / "adapter_model.safetensors", (later, later))
    with pytest.raises(RunError, match="older than the run's adapter"):
        publish_run(run, push, ALICE)
    assert hub.requests == []


def test_a_base_of_this_machine_is_named_by_what_it_is_alone(hub: FakeHub, run: RunFolder) -> None:
    plan = plan_of(TrainingRequest(bits=4), model_of("local", id="/home/alice/private/base"))
    (run.path / "plan.json").write_text(plan.model_dump_json())
    exported(run)
    publish_run(RunFolder(run.path), PushRequest(repo="alice/new", what="merged"), ALICE)
    files = hub.repo("model", "alice/new").files
    assert b"/home/alice" not in b"".join(files.values())
    assert "base_model" not in front_of(files["README.md"].decode())
