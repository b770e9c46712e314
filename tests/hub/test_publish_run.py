"""A run goes to the Hub as its adapter or as one of its checkpoints, and never damaged."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qlora_space.core.errors import HubError, RunError
from qlora_space.hub.publish_run import publish_run
from qlora_space.runs import PushRequest, Report
from tests.fake_hub import ALICE, FakeHub
from tests.hub.conftest import report_of
from tests.runs.folders import demo_run


@pytest.mark.parametrize("damage", ["not finite", "is damaged"])
def test_a_damaged_adapter_is_refused_before_any_request(
    hub: FakeHub, tmp_path: Path, damage: str
) -> None:
    run = demo_run(tmp_path)
    run.adapter_folder.mkdir()
    file = run.adapter_folder / "adapter_model.safetensors"
    save_file({"lora_A": np.array([1.0, np.nan], np.float32)}, file)
    if damage == "is damaged":
        file.write_bytes(file.read_bytes()[:20])
    report = Report(
        scores=(), num_eval_rows=0, num_exact_match_rows=0, steps=1, trained_tokens=1, train_seconds=1,
        total_seconds=1, tokens_per_second=1, peak_gib=1, adapter_sha256="",
    )  # fmt: skip
    run.report_file.write_text(report.model_dump_json())
    with pytest.raises(HubError, match=damage):
        publish_run(run, PushRequest(repo="alice/adapter"), "hf_alice")
    assert hub.requests == []


def test_a_checkpoint_is_published_with_the_runs_tokenizer_and_says_so(
    hub: FakeHub, tmp_path: Path, adapter_folder: Path
) -> None:
    run = demo_run(tmp_path)
    shutil.copytree(adapter_folder, run.adapter_folder)
    run.report_file.write_text(report_of(adapter_step=50).model_dump_json())
    folder = run.checkpoint_folder(40)
    folder.mkdir(parents=True)
    save_file({"lora_A": np.array([1.0, 2.0], np.float32)}, folder / "adapter_model.safetensors")
    with pytest.raises(RunError, match="no checkpoint of it"):
        publish_run(run, PushRequest(repo="alice/tea", step=30), ALICE)
    publish_run(run, PushRequest(repo="alice/tea", step=40), ALICE)
    files = hub.repo("model", "alice/tea").files
    assert files["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    assert files["tokenizer.json"] == (adapter_folder / "tokenizer.json").read_bytes()
    card = files["README.md"].decode()
    assert "the checkpoint after step 40" in card
    assert "after step 50" in card
    assert "sha256 of its tensors" not in card
    assert run.publications()[-1].step == 40
    publish_run(run, PushRequest(repo="alice/tea"), ALICE)
    assert hub.repo("model", "alice/tea").files["adapter_model.safetensors"] != files
    assert [p.step for p in run.publications()] == [40, None]
