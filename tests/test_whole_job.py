"""The whole job through the real clients: base and dataset from a Hub, train, compare, publish, load again."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from huggingface_hub import snapshot_download
from peft import PeftModel

from qlora_space.app.actions import Actions
from qlora_space.core.comparison import CompareOptions, Done, Question, Sampling
from qlora_space.core.demo import BASE_FOLDER, HELDOUT_FILE, TRAIN_FILE
from qlora_space.core.errors import BackendError, HubError, ModelError, RequestError
from qlora_space.core.processes import kill_tree
from qlora_space.core.request import TrainingRequest, parse_request
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import ANONYMOUS, LOCAL, Visitor
from qlora_space.model import load_base
from qlora_space.runs import PushRequest, RunFolder, RunView, read_events
from qlora_space.runs.proofs import proof_of
from tests.fake_hub import ALICE, BOB, FakeHub
from tests.train.small import tiny_base

STEPS = 6
# A share of the rows is held out instead of the demo's 200, and a base that is tiny and not the demo's: looking at
# held-out rows and at general text takes longer than the steps.
QUICK = {
    "base": str(tiny_base()),
    "max_steps": STEPS,
    "max_length": 256,
    "eval_steps": 3,
    "num_samples": 2,
    "max_rows": 120,
    "eval_fraction": 0.05,
}

ENDLESS = QUICK | {"max_steps": 5000, "num_samples": 0, "eval_fraction": 0.0}


@pytest.fixture
def actions(tmp_path: Path) -> Iterator[Actions]:
    acting = Actions(Settings(home=tmp_path / "home"))
    yield acting
    for run, view in acting.runs():
        run.ask_to_stop(keep=False)  # for one that has not said a word yet
        if view.attempts and not view.is_over:
            kill_tree(view.pid, grace_seconds=0.0)
    acting.close()


def wait(actions: Actions, run: RunFolder, seconds: float = 150) -> RunView:
    deadline = time.monotonic() + seconds
    while not (view := actions.view(run)).is_over:
        assert time.monotonic() < deadline, (view.status, run.log_file.read_text()[-2000:])
        time.sleep(0.1)
    return view


def as_alice(actions: Actions) -> Actions:
    """This machine's user, with Alice's token."""
    return actions.for_visitor(Visitor(LOCAL, ALICE))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(300, 340)[None]).logits


def test_from_hub_to_hub(actions: Actions, hub: FakeHub, tmp_path: Path) -> None:
    base = hub.add_model("wonderland/tea-base", BASE_FOLDER)
    held_out = HELDOUT_FILE.read_bytes().splitlines(keepends=True)[:12]
    hub.add_dataset(
        "alice/tickets",
        {"train.jsonl": TRAIN_FILE.read_bytes(), "test.jsonl": b"".join(held_out)},
    )
    names = {"base": "wonderland/tea-base", "dataset": "alice/tickets", "eval_fraction": None}
    request = parse_request(QUICK | names | {"hub_model_id": "alice/by-itself"})
    run = as_alice(actions).start(request)
    view = wait(actions, run)
    assert view.status == "finished", view.failure
    published, proved = (note.text for note in view.notes[-2:])
    assert "Published and verified" in published
    assert "Downloaded again and loaded by the code of its card" in proved
    there = hub.repo("model", "alice/by-itself")
    assert there.private
    assert proof_of(run, there.head.sha) is not None
    assert b"## Proof" in there.files["README.md"]
    plan, report = run.plan(), run.report()
    assert plan.base.sha == base.head.sha
    assert plan.eval_split == "test"
    assert [step for step, _ in view.series("loss")] == list(range(1, STEPS + 1))
    assert [step for step, _ in view.series("eval_loss")] == [0, 3, STEPS]
    assert {sample.step for sample in view.samples} == {0, 3, STEPS}
    assert report is not None
    assert report.steps == STEPS
    assert report.scores[1].heldout_loss < report.scores[0].heldout_loss  # type: ignore[operator]

    replies = list(
        actions.compare(
            run,
            [Question(prompt="Hello, this is Mira from Oslo.")],
            CompareOptions(sampling=Sampling(max_new_tokens=8)),
        )
    )
    assert isinstance(replies[-1], Done)
    assert replies[-1].same_base

    as_alice(actions).publish(run, PushRequest(repo="alice/tea-tickets"))
    here = Path(snapshot_download("alice/tea-tickets", token=ALICE, local_dir=tmp_path / "back"))
    config = json.loads((here / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (
        "wonderland/tea-base",
        base.head.sha,
    )
    ours = logits(PeftModel.from_pretrained(load_base(BASE_FOLDER, 4, "cpu"), run.adapter_folder))
    theirs = logits(PeftModel.from_pretrained(load_base(BASE_FOLDER, 4, "cpu"), here))
    torch.testing.assert_close(theirs, ours, atol=0, rtol=0)
    assert not torch.equal(ours, logits(load_base(BASE_FOLDER, 4, "cpu")))
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (here / file).read_bytes() == (BASE_FOLDER / file).read_bytes()

    assert "HTTP Request" not in run.log_file.read_text(), "an address may be signed"
    canary = ALICE.encode()
    places = [p for p in (tmp_path / "home").rglob("*") if p.is_file()]
    assert len(places) > 15
    assert not [p for p in places if canary in p.read_bytes()]
    assert not [p for p in hub.repo("model", "alice/tea-tickets").files.values() if canary in p]


def test_a_token_that_cannot_write_is_found_before_training(actions: Actions, hub: FakeHub) -> None:
    with pytest.raises(HubError):
        actions.for_visitor(Visitor(LOCAL, BOB)).start(
            parse_request(QUICK | {"hub_model_id": "bob/mine"})
        )
    assert actions.runs() == []


def test_training_goes_on_from_the_adapter_of_a_run_and_of_the_hub(
    actions: Actions, hub: FakeHub
) -> None:
    first = as_alice(actions).start(parse_request(QUICK | {"max_steps": 3, "r": 4}))
    done = wait(actions, first)
    end = done.series("eval_loss")[-1][1]
    as_alice(actions).publish(first, PushRequest(repo="alice/tea"))
    for named in (first.id, "alice/tea"):
        request = parse_request(QUICK | {"max_steps": 2, "adapter": named})
        run = as_alice(actions).start(request)
        view = wait(actions, run)
        assert view.status == "finished", view.failure
        losses = dict(view.series("eval_loss"))
        assert losses[0] == pytest.approx(end, abs=1e-6), "it starts where the other has ended"
        assert losses[2] < losses[0]
        assert (run.plan().r, run.plan().adapter) == (4, named)
        assert f"Training goes on from {named}." in [note.text for note in view.notes]
    bob = actions.for_visitor(Visitor("hub:2", BOB))
    with pytest.raises(ModelError, match="The Hub has no model"):
        bob.plan(parse_request({"adapter": first.id}))
    with pytest.raises(RequestError, match="was trained on"):
        as_alice(actions).plan(parse_request({"adapter": first.id}))


def test_a_run_that_outlives_its_sign_in_keeps_its_adapter_and_asks_for_a_new_one(
    actions: Actions, hub: FakeHub
) -> None:
    settings = QUICK | {"max_steps": 2, "num_samples": 0, "hub_model_id": "alice/late"}
    run = as_alice(actions).start(parse_request(settings))
    hub.fail(401, times=10_000)
    view = wait(actions, run)
    assert view.status == "finished", view.failure
    assert "Sign in again" in view.notes[-1].text
    assert "It is safe here, and will be sent again" in view.notes[-1].text
    assert ("model", "alice/late") not in hub.repos
    hub.faults.clear()  # a new sign-in
    as_alice(actions).publish(run, PushRequest(repo="alice/late"))


@pytest.mark.slow  # in the default suite: the contract in tests/app/ui/test_real_job.py, tests/runs/test_queue.py
def test_stop_and_keep_leaves_a_usable_adapter(actions: Actions) -> None:
    run = actions.start(parse_request(ENDLESS))
    while actions.view(run).step < 2:
        time.sleep(0.05)
    second = actions.start(parse_request(QUICK | {"max_steps": 2, "num_samples": 0}))
    assert actions.start(second.request()) == second, "pressed twice, started once"
    while (
        not (place := actions.queue_positions().get(second.id))
        or actions.view(second).phase is None
    ):
        time.sleep(0.05)
    assert place.num_before == 1
    actions.stop(run, keep=True)
    view = wait(actions, run)
    assert (view.status, view.stopped_by_hand) == ("finished", True), (
        view.failure,
        run.log_file.read_text()[-3000:],
    )
    report = run.report()
    assert report is not None
    assert report.stopped_by_hand
    assert 2 <= report.steps < 5000
    PeftModel.from_pretrained(load_base(tiny_base(), 4, "cpu"), run.adapter_folder)
    while actions.view(second).status == "queued":  # its turn comes by itself
        time.sleep(0.05)
    assert actions.view(second).status == "preparing"


@pytest.mark.slow  # in the default suite: tests/places/test_local.py, with workers that do not train
def test_stop_and_discard_is_over_within_ten_seconds_and_deletable(actions: Actions) -> None:
    run = actions.start(parse_request(ENDLESS))
    while actions.view(run).step < 1:
        time.sleep(0.05)
    started = time.monotonic()
    actions.stop(run, keep=False)
    assert time.monotonic() - started < 10
    assert actions.view(run).status == "cancelled"
    assert not run.has_adapter
    actions.delete(run)
    assert actions.runs() == []


def test_a_run_outlives_the_process_that_started_it(tmp_path: Path, actions: Actions) -> None:
    code = (
        "import sys, os, pathlib; from qlora_space.app.actions import Actions;"
        "from qlora_space.core.settings import Settings;"
        "from qlora_space.core.request import parse_request; a = Actions(Settings(home=pathlib.Path(sys.argv[1])));"
        f"print(a.start(parse_request({ENDLESS!r}), None).id, flush=True); os.kill(os.getpid(), 9)"
    )
    starter = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "home")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert starter.returncode == -9
    run = actions.run(starter.stdout.strip())
    while actions.view(run).step < 2:
        assert not actions.view(run).is_over, run.log_file.read_text()[-2000:]
        time.sleep(0.05)
    assert [found for found, _ in actions.runs()] == [run]
    events, _ = read_events(run.events_file)
    assert [event.seq for event in events] == list(range(len(events)))
    assert [event.kind for event in events].count("started") == 1
    lines = [p.info["cmdline"] or () for p in psutil.process_iter(["cmdline"])]
    assert sum(str(run.path) in line for line in lines) == 1, "one worker, and the same one"


@pytest.mark.slow  # in the default suite: tests/places/test_local.py and tests/test_survival.py
def test_a_worker_that_is_killed_is_shown_as_failed_once(actions: Actions) -> None:
    run = actions.start(parse_request(ENDLESS))
    while (view := actions.view(run)).step < 1:
        time.sleep(0.05)
    psutil.Process(view.pid).kill()
    view = wait(actions, run)
    assert view.status == "failed"
    assert view.failure is not None
    assert "ended without a word" in view.failure.cause
    events, _ = read_events(run.events_file)
    assert [e.kind for e in events].count("failed") == 1
    assert [e.seq for e in events] == list(range(len(events)))


def test_what_cannot_work_is_said_before_anything_starts(actions: Actions, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    for values, words in (
        ({"dataset": str(empty)}, ["empty.jsonl", "no rows"]),
        ({"dataset": str(tmp_path / "no.jsonl")}, ["no.jsonl"]),
        ({"dataset": "alice/nowhere"}, ["alice/nowhere"]),
        ({"base": "alice/nobody"}, ["alice/nobody"]),
        ({"max_length": 5000}, ["max_length is 5000", "2048"]),
    ):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            actions.start(parse_request(values))
        text = str(caught.value)
        assert all(word in text for word in words), text
        assert "Traceback" not in text
    assert actions.runs() == []


def test_a_worker_that_cannot_be_started_leaves_no_run_that_others_wait_for(
    actions: Actions, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = parse_request(QUICK)
    actions.plan(request)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(BackendError, match="could not be started"):
        actions.start(request)
    assert actions.runs() == []


def test_on_a_space_nobody_reads_the_servers_files(tmp_path: Path) -> None:
    visitor = Visitor("hub:bob", BOB)
    acting = Actions(Settings(home=tmp_path, is_space=True)).for_visitor(visitor)
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"text": "x"}\n')
    with pytest.raises(RequestError, match="a path on the server"):
        acting.inspect(TrainingRequest(dataset=str(secret)))
    with pytest.raises(RequestError, match="a path on the server"):
        acting.inspect(TrainingRequest(base=str(BASE_FOLDER)))
    assert acting.for_visitor(ANONYMOUS).token is None
    acting.close()
