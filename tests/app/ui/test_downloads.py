"""What is downloaded is what the run has, whole, and only its owner gets it."""

import csv
import io
import zipfile
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from qlora_space.app.ui.downloads import Downloads, download_links, zipped
from qlora_space.core.events import Metric
from qlora_space.core.export import EXPORT_FILE, Exported, ExportOptions
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import Visitor
from qlora_space.runs import EventLog, RunFolder
from tests.app.ui.fake import FakeActions, scripted_run

ALICE, BOB = Visitor("hub:1", "hf_a"), Visitor("hub:2", "hf_b")


@pytest.fixture
def space(tmp_path: Path) -> FakeActions:
    return FakeActions(Settings(home=tmp_path, is_space=True), step_seconds=0.0, num_steps=4)


def client(space: FakeActions, visitor: Visitor) -> TestClient:
    app = Downloads(PlainTextResponse("the page"), lambda _: space.for_visitor(visitor))
    return TestClient(app)


@pytest.fixture
def run(space: FakeActions) -> RunFolder:
    run = scripted_run(space.for_visitor(ALICE), "Tea", "finished")
    run.adapter_folder.mkdir(exist_ok=True)
    (run.adapter_folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 12_000)
    (run.adapter_folder / "adapter_config.json").write_text("{}")
    (run.adapter_folder / "tokenizer.json").write_text("{}")
    (run.adapter_folder / "optimizer.pt").write_text("no part of it")
    return run


def test_the_zip_holds_the_adapter_and_nothing_else(space: FakeActions, run: RunFolder) -> None:
    answer = client(space, ALICE).get(f"/runs/{run.id}/adapter.zip")
    assert (
        answer.headers["content-disposition"] == f'attachment; filename="{run.id[:8]}-adapter.zip"'
    )
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    assert set(archive.namelist()) == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
    }
    for name in archive.namelist():
        assert archive.read(name) == (run.adapter_folder / name).read_bytes()


def test_a_zip_is_never_whole_in_memory(run: RunFolder) -> None:
    sizes = [len(piece) for piece in zipped(run.adapter_folder, ("adapter_model.safetensors",))]
    assert sum(sizes) > 3_000_000
    assert max(sizes) < 1_200_000


def test_metrics_are_a_table_by_step(space: FakeActions, run: RunFolder) -> None:
    EventLog(run.events_file).append(Metric(step=9, total_steps=9, values={"eval_loss": 0.25}))
    rows = list(
        csv.DictReader(io.StringIO(client(space, ALICE).get(f"/runs/{run.id}/metrics.csv").text))
    )
    assert rows[-1]["step"] == "9"
    assert rows[-1]["eval_loss"] == "0.25"
    assert rows[-1]["loss"] == ""
    assert any(float(row["loss"] or 0) > 0 for row in rows)


def test_events_are_the_file(space: FakeActions, run: RunFolder) -> None:
    answer = client(space, ALICE).get(f"/runs/{run.id}/events.jsonl")
    assert answer.content == run.events_file.read_bytes()


@pytest.mark.parametrize(
    "name",
    ["adapter.zip", "metrics.csv", "events.jsonl", "votes.jsonl", f"comparisons/{'0' * 16}.json"],
)
def test_nobody_else_gets_them_and_the_words_are_those_for_no_run(
    space: FakeActions, run: RunFolder, name: str
) -> None:
    theirs = client(space, BOB).get(f"/runs/{run.id}/{name}")
    unknown = client(space, BOB).get(f"/runs/{'0' * 32}/{name}")
    assert theirs.status_code == unknown.status_code == 404
    assert theirs.text.replace(run.id, "ID") == unknown.text.replace("0" * 32, "ID")


def test_other_addresses_and_methods_are_not_its(space: FakeActions, run: RunFolder) -> None:
    alice = client(space, ALICE)
    assert alice.get(f"/runs/{run.id}/plan.json").text == "the page"
    assert alice.get(f"/runs/{run.id}/adapter.zip/x").text == "the page"
    assert alice.post(f"/runs/{run.id}/adapter.zip").status_code == 405


def test_a_run_without_an_adapter_offers_none(space: FakeActions) -> None:
    run = scripted_run(space.for_visitor(ALICE), "Tea", "failed", upto=2)
    assert "adapter.zip" not in download_links(run.id, has_adapter=run.has_adapter)
    answer = client(space, ALICE).get(f"/runs/{run.id}/adapter.zip")
    assert (answer.status_code, answer.text[:29]) == (404, "This run has no adapter yet. ")


def test_an_export_is_a_zip_of_what_was_made_and_nothing_else(
    space: FakeActions, run: RunFolder
) -> None:
    folder = run.exports_folder / "merged"
    folder.mkdir(parents=True)
    made = Exported(options=ExportOptions(), dtype="bfloat16", num_bytes=3, files=("a.txt",))
    (folder / EXPORT_FILE).write_text(made.model_dump_json())
    (folder / "a.txt").write_text("abc")
    (folder / "b.txt").write_text("no part of it")
    answer = client(space, ALICE).get(f"/runs/{run.id}/exports/merged.zip")
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.namelist() == ["a.txt"]
    assert archive.read("a.txt") == b"abc"
    assert client(space, ALICE).get(f"/runs/{run.id}/exports/gguf.zip").status_code == 404
    assert client(space, BOB).get(f"/runs/{run.id}/exports/merged.zip").status_code == 404
