"""Whose token is used (the visitor's on a Space, never this machine's), and which memory a run may count on."""

import json
import os
from pathlib import Path

import pytest
from safetensors.numpy import save

from qlora_space.app.actions import Actions
from qlora_space.core.comparison import Question
from qlora_space.core.errors import QloraSpaceError, RequestError
from qlora_space.core.events import Metric, Phase, Started
from qlora_space.core.processes import start_time
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import ANONYMOUS, Visitor
from qlora_space.runs import EventLog, create_run
from tests.fake_hub import ALICE, BOB, FakeHub
from tests.train.conftest import demo_plan


@pytest.mark.parametrize(
    ("visitor", "refusal", "users"),
    [
        (ANONYMOUS, "Sign in to compare an adapter", set()),
        (Visitor("hub:2", BOB), "alice/secret", {"bob"}),
    ],
)
def test_an_adapter_to_compare_is_fetched_as_the_visitor(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    visitor: Visitor,
    refusal: str,
    users: set[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE)  # the Space's own
    hub.add_model("alice/secret", {"adapter_config.json": "{}"}, private=True)
    actions = Actions(Settings(home=tmp_path, is_space=True)).for_visitor(visitor)
    with pytest.raises(QloraSpaceError, match=refusal):
        list(actions.compare_adapter("alice/secret", [Question(prompt="Hello")]))
    assert {seen.user for seen in hub.requests} == users


def test_an_adapter_of_the_hub_names_no_base_on_the_servers_disk(
    hub: FakeHub, tmp_path: Path
) -> None:
    config = json.dumps({"base_model_name_or_path": str(tmp_path)})
    hub.add_model(
        "alice/odd", {"adapter_config.json": config, "adapter_model.safetensors": save({})}
    )
    actions = Actions(Settings(home=tmp_path, is_space=True)).for_visitor(Visitor("hub:2", BOB))
    try:
        with pytest.raises(RequestError, match="a path on the server"):
            list(actions.compare_adapter("alice/odd", [Question(prompt="Hello")]))
    finally:
        actions.close()


@pytest.mark.parametrize(
    ("values", "more_gib"),
    [
        ({"memory_gib": 1.0, "card_gib": 1.5}, 1.5),
        ({"memory_gib": 1.0}, 1.0),  # of earlier versions
    ],
)
def test_what_the_run_that_trains_now_holds_of_the_card_is_free_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, float], more_gib: float
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    actions = Actions(Settings(home=tmp_path))
    here = actions.hardware().model_copy(update={"memory_gib": 100.0, "free_gib": 50.0})
    monkeypatch.setattr(actions, "hardware", lambda: here)
    run = create_run(actions.settings.runs_folder, TrainingRequest(), demo_plan())
    log, me = EventLog(run.events_file), os.getpid()
    log.append(Started(place="GPU", pid=me, pid_start_time=start_time(me)))
    log.append(Phase(name="train", done=0, total=1))
    log.append(Metric(step=1, total_steps=2, values=values))
    assert actions._surroundings().here.free_gib == 50 + more_gib


@pytest.mark.parametrize(
    ("cpu_offload", "phase", "more_gib"),
    [(True, "train", 6.0), (False, "train", 0.0), (True, "queue", 0.0)],
)
def test_host_memory_of_the_run_that_trains_now_counts_as_free_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_offload: bool, phase: str, more_gib: float
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    actions, plan = Actions(Settings(home=tmp_path)), demo_plan()
    base = plan.base.model_copy(update={"linear_parameters": 6 * 2**30})  # 3 GiB at 4 bits
    shared = {"base": base, "cpu_offload": cpu_offload, "num_processes": 2}  # a copy for each
    run = create_run(
        actions.settings.runs_folder, TrainingRequest(), plan.model_copy(update=shared)
    )
    log, me = EventLog(run.events_file), os.getpid()
    log.append(Started(place="GPU", pid=me, pid_start_time=start_time(me)))
    log.append(Phase(name=phase, done=0, total=1))  # type: ignore[arg-type]
    free_gib = actions._surroundings().here.host_free_gib
    assert free_gib == actions.hardware().host_free_gib + more_gib
