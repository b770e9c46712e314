"""A damaged adapter never reaches the Hub."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from qlora_space.core.errors import HubError
from qlora_space.hub.publish_run import publish_run
from qlora_space.runs import Report
from tests.fake_hub import FakeHub
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
        publish_run(run, "alice/adapter", True, "hf_alice")
    assert hub.requests == []
