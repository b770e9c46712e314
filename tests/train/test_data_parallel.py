"""Two real processes over gloo take the fast step together: what one would have done, and an end in a sentence."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from qlora_space.core.errors import ModelError
from qlora_space.core.events import Note, Rollback
from qlora_space.core.interruption import Interruption
from qlora_space.data import IGNORED_LABEL
from qlora_space.fast import FastStep, attach
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder
from qlora_space.train import data_parallel as parallel
from qlora_space.train import follower_process
from qlora_space.train.checkpoint import newest_checkpoint
from qlora_space.train.data_parallel import Followers, _shares
from qlora_space.train.follower_process import FollowerProcess
from qlora_space.train.load import base_and_adapter
from qlora_space.train.protocol import Frame, frame_bytes, read_frames
from tests.train.small import STEPS, events_of, go_on, outcome, small_plan, small_run, tiny_base
from tests.train.test_loop import break_training, broken_gradient

Inputs = dict[str, torch.Tensor]
SAME = 1e-5  # relative; sums of fp32 in another order


def shared_plan(num_processes: int = 2, **changed: object) -> Plan:
    """Four rows an update, whoever computes them."""
    rows = {"gradient_accumulation_steps": 4 // num_processes, "num_processes": num_processes}
    return small_plan(
        **rows | {"step_kind": "fast", "lora_dropout": 0.0, "save_steps": 0} | changed
    )


def followers_of(run: RunFolder, pid: int | None = None) -> list[psutil.Process]:
    """Of a run in this process, or in that."""
    return [p for p in psutil.Process(pid).children() if str(run.path) in p.cmdline()]


class Pair:
    """A fast step here and a follower elsewhere, with the same base and adapter."""

    def __init__(self, home: Path) -> None:
        self.run = run = small_run(home, shared_plan())
        self.followers = Followers(run, ("",), lambda: None)
        self.followers.start(tiny_base())
        self.model = base_and_adapter(run, tiny_base())
        self.followers.connect()
        fast_step, why = attach(self.model, on_cpu=True)
        assert fast_step, why
        self.fast_step: FastStep = fast_step
        self.followers.get_ready(fast_step)

    def change_weights(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.fast_step.fast.parameters:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1

    def together(self, batches: list[Inputs], num_items: int) -> tuple[float, torch.Tensor]:
        self.model.zero_grad()
        losses = [self.followers.add_gradients(self.fast_step, b, num_items) for b in batches]
        loss = self.followers.sum_gradients(self.fast_step, sum(losses[1:], losses[0]))
        self.followers.synchronize()
        return float(loss), self.fast_step.fast.gradients.flat.clone()

    def alone(self, batches: list[Inputs], num_items: int) -> tuple[float, torch.Tensor]:
        """The same shares one after the other."""
        self.model.zero_grad()
        shares = [share for batch in batches for share in _shares(batch, 2)]
        losses = [self.fast_step(s, num_items) for s in shares if len(s["labels"])]
        return float(sum(losses)), self.fast_step.fast.gradients.flat.clone()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("pair"))
    yield made
    made.followers.close()


def some_rows(count: int, seed: int) -> Inputs:
    ids = torch.randint(3, 300, (count, 64), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(40), torch.arange(24)]).expand(count, -1).contiguous()
    return {"input_ids": ids, "labels": ids.masked_fill(positions < 5, -100), "position_ids": positions}  # fmt: skip


@pytest.mark.parametrize("counts", [[1], [3], [5, 2]])
def test_gradients_of_two_processes_are_those_of_one_with_the_weights_of_now(
    pair: Pair, counts: list[int]
) -> None:
    """One row leaves the follower without any; several micro-batches add up; each step has other weights."""
    for update in range(2):
        pair.change_weights(seed=update)
        batches = [some_rows(count, 10 * update + count) for count in counts]
        num_items = sum(int((p["labels"] != -100).sum()) for p in batches)
        loss, gradients = pair.together(batches, num_items)
        wanted_loss, wanted = pair.alone(batches, num_items)
        assert loss == pytest.approx(wanted_loss, rel=SAME)
        assert (gradients - wanted).norm() < SAME * wanted.norm()
        assert wanted.norm() > 0


def test_what_was_begun_and_broken_off_leaves_no_trace(pair: Pair) -> None:
    """As when memory runs out in the worker between two micro-batches."""
    batch, num_items = some_rows(4, 1), 100
    wanted = pair.together([batch], num_items)[1]
    pair.model.zero_grad()
    pair.followers.add_gradients(pair.fast_step, some_rows(4, 2), num_items)
    got = pair.together([batch], num_items)[1]
    assert (got - wanted).norm() < SAME * wanted.norm()


def test_a_run_on_two_is_the_run_on_one(tmp_path: Path, metrics_mode: str) -> None:
    """With one micro-batch per step, the step before is reported between the launch and the sum."""
    accumulation = 1 if metrics_mode == "deferred" else 2
    rows = {
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 2 // accumulation,
    }
    one = small_run(tmp_path / "1", shared_plan(1))
    two = small_run(tmp_path / "2", shared_plan(2, **rows))
    for run in (one, two):
        assert go_on(run).kind == "finished"
    wanted, got = outcome(one).numbers, outcome(two).numbers
    assert set(wanted["loss"]) == set(range(1, STEPS + 1))
    for name, values in wanted.items():
        assert got[name] == pytest.approx(values, rel=50 * SAME), name
    told = [e.text for e in events_of(two) if isinstance(e, Note)]
    assert "2 GPUs share every step." in told
    assert not any("GPUs" in e.text for e in events_of(one) if isinstance(e, Note))
    assert followers_of(two) == []


@pytest.mark.slow
def test_of_a_packed_base_the_follower_reads_what_the_worker_packed(tmp_path: Path) -> None:
    """Its adapter starts as a repair, which comes from the worker."""
    packed = {"bits": 3, "init": "eora", "eval_steps": 100}
    one, two = (small_run(tmp_path, shared_plan(n, **packed)) for n in (1, 2))
    for run in (one, two):
        assert go_on(run).kind == "finished"
    wanted, got = outcome(one).numbers["loss"], outcome(two).numbers["loss"]
    assert got == pytest.approx(wanted, rel=10 * SAME)


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("metrics_mode")
def test_a_follower_that_is_killed_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    run = small_run(tmp_path, shared_plan(max_steps=10_000, eval_steps=10_000))

    def heartbeat() -> None:
        if sum(e.kind == "metric" and "loss" in e.values for e in events_of(run)) >= 2:
            for follower in followers_of(run):
                follower.send_signal(signal.SIGKILL)

    with pytest.raises(ModelError, match=r"GPU 2 of this run is lost: .* killed by signal 9"):
        go_on(run, heartbeat=heartbeat)
    assert followers_of(run) == []


@pytest.mark.usefixtures("metrics_mode")
def test_a_signal_while_a_follower_is_waited_for_never_parts_weights_and_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, shared_plan(eval_steps=100))
    original, sent = FollowerProcess.send, iter(range(1, 1000))
    interruption = Interruption()

    def send(self: FollowerProcess, frame: Frame, *tensors: Inputs) -> None:
        if frame is Frame.WEIGHTS and next(sent) == 4:  # the longest rows, two steps, and the third
            interruption.interrupt("signal")
            self._check_in()  # as when the pipe takes nothing for a while
        original(self, frame, *tensors)

    monkeypatch.setattr(FollowerProcess, "send", send)
    assert go_on(run, interruption).kind == "paused"
    snapshot, _ = newest_checkpoint(run.checkpoints_folder)
    assert snapshot is not None
    counts = {float(t) for name, t in snapshot.optimizer.items() if name.endswith(".step")}
    assert counts == {2.0}
    assert snapshot.progress.step == 2


@pytest.mark.slow
@pytest.mark.usefixtures("metrics_mode")
def test_memory_that_runs_out_in_a_follower_makes_everybodys_micro_batches_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small_run(tmp_path / "whole", shared_plan(1))
    go_on(whole)
    monkeypatch.setattr(follower_process, "_COMMAND", ("-m", "tests.train.poor_follower"))
    rows = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    poor = small_run(tmp_path / "poor", shared_plan(**rows))
    assert go_on(poor).kind == "finished"
    told = [e.text for e in events_of(poor) if isinstance(e, Note) and "Memory ran out" in e.text]
    assert len(told) == 1
    assert "with micro-batches of 2 rows; going on from step 0 with 1" in told[0]
    wanted, got = outcome(whole).numbers, outcome(poor).numbers
    assert got["loss"] == pytest.approx(wanted["loss"], rel=10 * SAME)


@pytest.mark.slow
@pytest.mark.usefixtures("metrics_mode")
def test_after_a_rollback_the_follower_has_the_weights_that_were_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes of one: the longest rows, then four per step; of two: the longest rows, then two."""
    found = {}
    for n, broken in ((1, 12), (2, 6)):
        run = small_run(tmp_path / str(n), shared_plan(n, save_steps=1))
        with monkeypatch.context() as patch:
            break_training(patch, broken_gradient, lambda at, n=broken: at.number == n)
            assert go_on(run).kind == "finished"
        assert [e.to_step for e in events_of(run) if isinstance(e, Rollback)] == [2]
        found[n] = {
            e.step: e.values["loss"]
            for e in events_of(run)
            if e.kind == "metric" and "loss" in e.values
        }
    assert found[2] == pytest.approx(found[1], rel=100 * SAME)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_gpus(tmp_path: Path) -> None:
    whole, broken = (small_run(tmp_path / n, shared_plan(2)) for n in ("whole", "broken"))
    go_on(whole)
    interruption = Interruption()

    def stop() -> None:
        if step_of(broken) >= 3:
            interruption.interrupt("signal")

    assert go_on(broken, interruption, heartbeat=stop).kind == "paused"
    assert 3 <= step_of(broken) < STEPS
    (broken.path / "plan.json").write_text(shared_plan(1).model_dump_json())
    assert go_on(RunFolder(broken.path)).kind == "finished"
    wanted, got = outcome(whole).numbers, outcome(broken).numbers
    assert got["loss"] == pytest.approx(wanted["loss"], rel=100 * SAME)


def step_of(run: RunFolder) -> int:
    return max((e.step for e in events_of(run) if e.kind == "metric"), default=0)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_when_the_worker_is_killed_its_followers_end(tmp_path: Path) -> None:
    run = small_run(tmp_path, shared_plan(max_steps=10_000, eval_steps=10_000))
    command = [sys.executable, "-m", "qlora_space.places.worker", "train", str(run.path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as worker:
        while step_of(run) < 2:
            assert worker.poll() is None, events_of(run)[-1]
            time.sleep(0.1)
        followers = followers_of(run, worker.pid)
        assert len(followers) == 1
        worker.kill()
    assert psutil.wait_procs(followers, timeout=20)[1] == []


@pytest.mark.slow
def test_a_follower_that_cannot_load_the_base_says_why(tmp_path: Path) -> None:
    followers = Followers(small_run(tmp_path, shared_plan()), ("",), lambda: None)
    followers.start(tmp_path)
    with pytest.raises(
        ModelError, match=r"GPU 2 of this run stopped: The base could not be loaded"
    ):
        followers.connect()
    followers.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("broken", "GPU 2 of this run stopped: Its base is broken."),
        pytest.param("loaded", "could not be connected: no answer in 3 s", marks=pytest.mark.slow),
        ("connected", "could not be connected: no answer in 3 s"),
    ],
)
def test_a_gpu_that_does_not_come_to_help_leaves_the_run_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, why: str
) -> None:
    monkeypatch.setattr(follower_process, "_COMMAND", ("-m", "tests.train.silent_follower", how))
    monkeypatch.setattr(parallel, "_CONNECT_SECONDS", 3.0)
    run = small_run(tmp_path, shared_plan(max_steps=2, eval_steps=100))
    assert go_on(run).kind == "finished"
    notes = [e for e in events_of(run) if isinstance(e, Note)]
    (warning,) = [e.text for e in notes if e.level == "warning" and "GPU" in e.text]
    assert why in warning
    assert warning.endswith("One GPU does all the work.")
    assert any("Planned for 2 GPUs, going on with 1" in e.text for e in notes)
    assert followers_of(run) == []


def test_frames_arrive_whole_or_not_at_all() -> None:
    tensors = {"input_ids": torch.arange(12).reshape(3, 4), "num_items": torch.tensor(7.0)}
    sent = frame_bytes(Frame.WEIGHTS) + frame_bytes(Frame.ROWS, tensors)
    (first, nothing), (second, got) = read_frames(io.BytesIO(sent))
    assert (first, nothing, second) == (Frame.WEIGHTS, {}, Frame.ROWS)
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[name], tensors[name]) for name in tensors)
    for cut in range(len(sent)):
        assert len(list(read_frames(io.BytesIO(sent[:cut])))) == (cut >= 9)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", range(1, 10))
def test_every_row_is_in_one_share_and_none_is_larger_than_planned(rows: int, world: int) -> None:
    inputs = some_rows(rows, rows)
    shares = list(_shares(inputs, world))
    assert len(shares) == world
    assert max(len(share["labels"]) for share in shares) == -(-rows // world)
    for name, tensor in inputs.items():
        put_back = torch.cat([share[name] for share in shares])
        assert sorted(put_back.tolist()) == sorted(tensor.tolist())


def test_long_and_short_rows_are_shared_so_that_no_gpu_waits_long_for_another() -> None:
    labels = torch.full((6, 100), IGNORED_LABEL)
    for row, size in enumerate((100, 98, 96, 20, 18, 16)):
        labels[row, :size] = 1
    shares = list(_shares({"labels": labels}, 3))
    assert [int((share["labels"] == 1).sum()) for share in shares] == [116, 116, 116]


def test_followers_hear_of_no_other_machine(pair: Pair) -> None:
    """All that the two processes listen on is loopback."""
    (follower,) = followers_of(pair.run)
    found = [*psutil.Process().net_connections("inet"), *follower.net_connections("inet")]
    listening = {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::1"}
    assert os.environ["NCCL_SOCKET_IFNAME"] == "lo"
