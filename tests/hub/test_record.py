"""The record of a published run: enough to make the run again, and nothing that is not for everybody."""

import hashlib
import json
from pathlib import Path

from qlora_space.core.request import TrainingRequest
from qlora_space.hub.record import record_json
from qlora_space.runs import PushRequest
from tests.hub.conftest import TEMPLATE, dataset_of, plan_of, report_of
from tests.runs.folders import demo_run

PUSH = PushRequest(repo="alice/tea", step=40)


def test_it_says_what_the_run_was_made_of_and_what_it_took(tmp_path: Path) -> None:
    run = demo_run(tmp_path)
    run.data_folder.mkdir()
    manifest = {"files": {"train.arrow": "a" * 64}, "tokenizer_sha256": "t" * 64}
    (run.data_folder / "manifest.json").write_text(json.dumps(manifest))
    run.adapter_folder.mkdir()
    (run.adapter_folder / "chat_template.jinja").write_text(TEMPLATE)
    request = TrainingRequest(dataset="alice/data", base="alice/base", seed=7)
    plan = plan_of(request)
    priced = plan.hardware.model_copy(update={"price_per_hour_usd": 4.5})
    plan = plan.model_copy(update={"hardware": priced})
    made = json.loads(record_json(run, request, plan, report_of(), PUSH))["made"]
    assert made == {
        "app_version": made["app_version"],
        "dataset_sha": "b" * 40,
        "base_sha": "a" * 40,
        "prepared_sha256": manifest["files"],
        "tokenizer_sha256": "t" * 64,
        "template_sha256": hashlib.sha256(TEMPLATE.encode()).hexdigest(),
        "seed": 7,
        "hardware": "CPU, 2 cores",
        "steps": 60,
        "seconds": 80.0,
        "cost_usd": 0.1,
        "checkpoint_step": 40,
    }
    assert json.loads(record_json(run, request, plan, report_of(), PUSH))["report"]["versions"]


def test_rows_of_a_private_dataset_and_folders_are_not_in_it(tmp_path: Path) -> None:
    secret = "/home/alice/secret project/rows.jsonl"
    data = dataset_of(id=secret, sha="d" * 64, is_public=False)
    request = TrainingRequest(
        dataset=secret,
        base="alice/base",
        adapter="/home/alice/secret adapters/tea",
        mirror_to="alice/secret-copy",
    )
    text = record_json(demo_run(tmp_path), request, plan_of(request, None, data), report_of(), PUSH)
    assert "secret" not in text
    assert "Who?" not in text
    asked = json.loads(text)["request"]
    assert (asked["dataset"], asked["adapter"], asked["mirror_to"]) == ("rows.jsonl", "tea", None)
