"""A published run gives its settings back, whoever wrote its record."""

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_space.core.errors import HubError, ModelError
from qlora_space.core.request import TrainingRequest
from qlora_space.hub import fetch_record
from qlora_space.hub.published_run import read_record
from qlora_space.hub.record import record_json
from qlora_space.runs import PushRequest
from tests.fake_hub import ALICE, FakeHub
from tests.hub.conftest import plan_of, report_of
from tests.runs.folders import demo_run

NAME = "alice/tea"


def record_of(tmp_path: Path, **fields: object) -> str:
    values = {"base": "alice/base", "dataset": "alice/data", "r": 8} | fields
    request = TrainingRequest.model_validate(values)
    push = PushRequest(repo=NAME)
    return record_json(demo_run(tmp_path), request, plan_of(request), report_of(), push)


def read(hub: FakeHub, record: str) -> Any:
    hub.add_model(NAME, {"qlora_space.json": record}, private=True)
    return read_record(NAME, fetch_record(NAME, ALICE))


def test_the_same_run_at_the_same_commits(hub: FakeHub, tmp_path: Path) -> None:
    found = read(hub, record_of(tmp_path, seed=3, name="Tea"))
    assert found.left_out == ()
    assert found.request == TrainingRequest(
        base="alice/base",
        base_revision="a" * 40,
        dataset="alice/data",
        dataset_revision="b" * 40,
        r=8,
        seed=3,
        name="Tea",
    )


def test_what_is_its_authors_alone_is_left_out_in_a_sentence(hub: FakeHub, tmp_path: Path) -> None:
    request = TrainingRequest(
        dataset="/home/a/rows.jsonl", dataset_split="train", adapter="0" * 32, base="alice/base",
        hub_model_id="alice/tea", mirror_to="alice/copy", r=8,
    )  # fmt: skip
    plan = plan_of(request.model_copy(update={"adapter": None, "dataset": "alice/data"}))
    push = PushRequest(repo=NAME)
    record = record_json(demo_run(tmp_path), request, plan, report_of(), push)
    found = read(hub, record)
    assert [sentence.split(" ")[1] for sentence in found.left_out] == ["dataset", "went"]
    assert found.request == TrainingRequest(base="alice/base", base_revision="a" * 40, r=8)


def test_a_relative_path_is_no_name_on_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    """data/train.jsonl would be a file of whoever starts from this record."""
    request = TrainingRequest(dataset="data/train.jsonl", base="models/my-base", r=8)
    plan = plan_of(request)
    hashed = {"dataset": plan.dataset.model_copy(update={"sha": "d" * 64})}
    hashed["base"] = plan.base.model_copy(update={"sha": "e" * 64})
    plan = plan.model_copy(update=hashed)
    record = record_json(demo_run(tmp_path), request, plan, report_of(), PushRequest(repo=NAME))
    found = read(hub, record)
    assert found.request == TrainingRequest(r=8)
    assert len(found.left_out) == 2


def test_values_that_no_request_may_have_are_left_out(hub: FakeHub, tmp_path: Path) -> None:
    record = json.loads(record_of(tmp_path))
    record["request"] |= {"r": -5, "learning_rate": "<script>", "of_a_newer_version": 1}
    found = read(hub, json.dumps(record))
    assert found.request.r is None
    assert found.request.dataset == "alice/data"
    assert sorted(found.left_out) == [
        "learning_rate has a value that is not used here.",
        "r has a value that is not used here.",
    ]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("[1]", "no run in it"),
        ("{}", "no run in it"),
        ('{"request": [], "plan": {}}', "no run in it"),
        ("{" * 50, "is not JSON"),
        ('{"a":' * 30 + "1" + "}" * 30, "nested more than"),
    ],
)
def test_a_record_that_is_none_is_a_sentence(hub: FakeHub, record: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read(hub, record)


def test_a_repository_without_a_record_or_a_name_without_a_repository(hub: FakeHub) -> None:
    hub.add_model("alice/other", {"README.md": "mine"})
    for repo, words in (
        ("alice/other", "has no qlora_space.json"),
        ("alice/none", "does not exist or is private"),
        ("tea", "is no repository"),
        ("../x", "is no repository"),
    ):
        with pytest.raises((ModelError, HubError), match=words):
            fetch_record(repo, ALICE)
