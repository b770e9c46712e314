"""Two real processes over gloo take the fast step together: what one would have done, and an end in a sentence."""

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
from datasets import Dataset

from qlora_space.core.errors import ModelError
from qlora_space.core.events import Note, Rollback
from qlora_space.core.interruption import Interruption
from qlora_space.data import IGNORED_LABEL, prepare
from qlora_space.fast import FastStep, attach
from qlora_space.plan import Plan
from qlora_space.runs import RunFolder
from qlora_space.train import data_parallel as parallel
from qlora_space.train import local_rank
from qlora_space.train.batches import Batch, PackedCollator, TrainingRows, num_trained
from qlora_space.train.checkpoint import newest_checkpoint
from qlora_space.train.data_parallel import Ranks, shares_of
from qlora_space.train.load import base_and_adapter
from tests.train.small import STEPS, events_of, go_on, outcome, small_plan, small_run, tiny_base
from tests.train.test_loop import break_training, broken_gradient

SAME = 1e-5  # relative; sums of fp32 in another order


def shared_plan(num_processes: int = 2, **changed: object) -> Plan:
    """Four rows an update, whoever computes them."""
    rows = {"gradient_accumulation_steps": 4 // num_processes, "num_processes": num_processes}
    return small_plan(
        **rows | {"step_kind": "fast", "lora_dropout": 0.0, "save_steps": 0} | changed
    )


def others_of(run: RunFolder, pid: int | None = None) -> list[psutil.Process]:
    """Of a run in this process, or in that."""
    return [p for p in psutil.Process(pid).children() if str(run.path) in p.cmdline()]


class Pair:
    """A fast step here and another process, with the same base, adapter and data."""

    def __init__(self, home: Path) -> None:
        self.run = run = small_run(home, shared_plan())
        self.ranks = Ranks(run, lambda: None, gpus=("",))
        self.ranks.start(tiny_base())
        prepared = prepare(run.plan(), run.data_folder, lambda *_: None, None)
        self.rows = TrainingRows(Dataset.from_file(str(prepared.train_file)), PackedCollator(3))
        self.model = base_and_adapter(run, tiny_base())
        self.ranks.connect()
        fast_step, why = attach(self.model, on_cpu=True)
        assert fast_step, why
        self.fast_step: FastStep = fast_step
        self.ranks.get_ready(fast_step, prepared.manifest.key)

    def some_rows(self, count: int, seed: int) -> Batch:
        chosen = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(seed))
        return self.rows.batch(chosen[:count].tolist())

    def change_weights(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.fast_step.fast.parameters:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1

    def together(self, batches: list[Batch], num_items: int) -> tuple[float, torch.Tensor]:
        self.model.zero_grad()
        losses = [self.ranks.add_gradients(self.fast_step, b, num_items) for b in batches]
        loss = self.ranks.sum_gradients(self.fast_step, sum(losses[1:], losses[0]))
        self.ranks.synchronize()
        return float(loss), self.fast_step.fast.gradients.flat.clone()

    def alone(self, batches: list[Batch], num_items: int) -> tuple[float, torch.Tensor]:
        """The same rows one after the other."""
        self.model.zero_grad()
        single = [self.rows.batch([row]) for batch in batches for row in batch.rows]
        losses = [self.fast_step(each.inputs, num_items) for each in single]
        return float(sum(losses)), self.fast_step.fast.gradients.flat.clone()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("pair"))
    yield made
    made.ranks.close()


@pytest.mark.parametrize("counts", [[1], [3], [5, 2]])
def test_gradients_of_two_processes_are_those_of_one_with_the_weights_of_now(
    pair: Pair, counts: list[int]
) -> None:
    """One row leaves the other process without any; several micro-batches add up; each step has other weights."""
    for update in range(2):
        pair.change_weights(seed=update)
        batches = [pair.some_rows(count, 10 * update + count) for count in counts]
        num_items = sum(map(num_trained, batches))
        loss, gradients = pair.together(batches, num_items)
        wanted_loss, wanted = pair.alone(batches, num_items)
        assert loss == pytest.approx(wanted_loss, rel=SAME)
        assert (gradients - wanted).norm() < SAME * wanted.norm()
        assert wanted.norm() > 0


def test_what_was_begun_and_broken_off_leaves_no_trace(pair: Pair) -> None:
    """As when memory runs out in rank 0 between two micro-batches."""
    batch, num_items = pair.some_rows(4, 1), 100
    wanted = pair.together([batch], num_items)[1]
    pair.model.zero_grad()
    pair.ranks.add_gradients(pair.fast_step, pair.some_rows(4, 2), num_items)
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
    assert others_of(two) == []


@pytest.mark.slow
def test_of_a_packed_base_the_others_read_what_rank_0_packed(tmp_path: Path) -> None:
    """Its adapter starts as a repair, which comes from rank 0."""
    packed = {"bits": 3, "init": "eora", "eval_steps": 100}
    one, two = (small_run(tmp_path, shared_plan(n, **packed)) for n in (1, 2))
    for run in (one, two):
        assert go_on(run).kind == "finished"
    wanted, got = outcome(one).numbers["loss"], outcome(two).numbers["loss"]
    assert got == pytest.approx(wanted, rel=10 * SAME)


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("metrics_mode")
def test_a_process_that_is_killed_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    run = small_run(tmp_path, shared_plan(max_steps=10_000, eval_steps=10_000))

    def heartbeat() -> None:
        if sum(e.kind == "metric" and "loss" in e.values for e in events_of(run)) >= 2:
            for other in others_of(run):
                other.send_signal(signal.SIGKILL)

    with pytest.raises(ModelError, match=r"GPU 2 of this run is lost: .* killed by signal 9"):
        go_on(run, heartbeat=heartbeat)
    assert others_of(run) == []


@pytest.mark.usefixtures("metrics_mode")
def test_a_signal_while_others_are_waited_for_never_parts_weights_and_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(tmp_path, shared_plan(eval_steps=100))
    original, reports = Ranks._expect_done, iter(range(1, 1000))
    interruption = Interruption()

    def expect_done(self: Ranks) -> None:
        if next(reports) == 6:  # loaded, ready, the longest rows, two steps, and the third
            interruption.interrupt("signal")
            self._check_in()  # as when an answer takes a while
        original(self)

    monkeypatch.setattr(Ranks, "_expect_done", expect_done)
    assert go_on(run, interruption).kind == "paused"
    snapshot, _ = newest_checkpoint(run.checkpoints_folder)
    assert snapshot is not None
    counts = {float(t) for name, t in snapshot.optimizer.items() if name.endswith(".step")}
    assert counts == {2.0}
    assert snapshot.progress.step == 2


@pytest.mark.slow
@pytest.mark.usefixtures("metrics_mode")
def test_memory_that_runs_out_elsewhere_makes_everybodys_micro_batches_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small_run(tmp_path / "whole", shared_plan(1))
    go_on(whole)
    monkeypatch.setattr(local_rank, "_COMMAND", ("-m", "tests.train.poor_rank"))
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
def test_after_a_rollback_the_others_have_the_weights_that_were_gone_back_to(
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
def test_when_rank_0_is_killed_the_others_end(tmp_path: Path) -> None:
    run = small_run(tmp_path, shared_plan(max_steps=10_000, eval_steps=10_000))
    command = [sys.executable, "-m", "qlora_space.places.worker", "train", str(run.path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as worker:
        while step_of(run) < 2:
            assert worker.poll() is None, events_of(run)[-1]
            time.sleep(0.1)
        others = others_of(run, worker.pid)
        assert len(others) == 1
        worker.kill()
    assert psutil.wait_procs(others, timeout=20)[1] == []


@pytest.mark.slow
def test_a_process_that_cannot_load_the_base_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "base"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    ranks = Ranks(small_run(tmp_path, shared_plan()), lambda: None, gpus=("",))
    ranks.start(broken)
    with pytest.raises(
        ModelError, match=r"GPU 2 of this run stopped: The base could not be loaded"
    ):
        ranks.connect()
    ranks.close()


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
    monkeypatch.setattr(local_rank, "_COMMAND", ("-m", "tests.train.silent_rank", how))
    monkeypatch.setattr(parallel, "_CONNECT_SECONDS", 3.0)
    run = small_run(tmp_path, shared_plan(max_steps=2, eval_steps=100))
    assert go_on(run).kind == "finished"
    notes = [e for e in events_of(run) if isinstance(e, Note)]
    (warning,) = [e.text for e in notes if e.level == "warning" and "GPU" in e.text]
    assert why in warning
    assert warning.endswith("One GPU does all the work.")
    assert any("Planned for 2 GPUs, going on with 1" in e.text for e in notes)
    assert others_of(run) == []


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", range(1, 10))
def test_every_row_is_in_one_share_and_none_is_larger_than_planned(rows: int, world: int) -> None:
    labels = torch.randint(0, 9, (rows, 64), generator=torch.Generator().manual_seed(rows))
    shares = shares_of(labels, world)
    assert len(shares) == world
    assert max(map(len, shares)) == -(-rows // world)
    assert sorted(row for share in shares for row in share) == list(range(rows))


def test_long_and_short_rows_are_shared_so_that_no_gpu_waits_long_for_another() -> None:
    labels = torch.full((6, 100), IGNORED_LABEL)
    for row, size in enumerate((100, 98, 96, 20, 18, 16)):
        labels[row, :size] = 1
    shares = shares_of(labels, 3)
    assert [int((labels[share] == 1).sum()) for share in shares] == [116, 116, 116]


def test_processes_of_one_machine_hear_of_no_other_one(pair: Pair) -> None:
    """All that the two processes listen on is loopback."""
    (other,) = others_of(pair.run)
    found = [*psutil.Process().net_connections("inet"), *other.net_connections("inet")]
    listening = {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::1"}
    assert os.environ["NCCL_SOCKET_IFNAME"] == "lo"
