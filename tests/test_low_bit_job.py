"""A whole job at 2 bits: gate, training from the repair, comparison on the packed base, both ways to publish."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import snapshot_download
from peft import PeftModel

from qlora_space.app.actions import Actions
from qlora_space.core.comparison import CompareOptions, Done, Question, Reply, Sampling
from qlora_space.core.demo import BASE_FOLDER
from qlora_space.core.request import parse_request
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import LOCAL, Visitor
from qlora_space.lowbit import load_packed, load_quantized
from qlora_space.lowbit.checkpoint import load_lowbit
from qlora_space.model import compute_dtype, load_base
from qlora_space.runs import PushRequest, RunFolder
from tests.fake_hub import ALICE, FakeHub
from tests.test_whole_job import logits, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 6


def as_alice(actions: Actions) -> Actions:
    """This machine's user, with Alice's token."""
    return actions.for_visitor(Visitor(LOCAL, ALICE))


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Actions]:
    acting = Actions(Settings(home=tmp_path_factory.mktemp("home")))
    yield acting
    acting.close()


@pytest.fixture(scope="module")
def run(actions: Actions) -> RunFolder:
    asked = {"bits": 2, "max_steps": STEPS, "max_length": 256, "eval_steps": 3, "num_samples": 1}
    # By its weights alone: a recipe packs it again, which is one of the ways to publish.
    asked |= {"max_rows": 120, "r": 8, "calibrated": False}
    run = actions.start(parse_request(asked))
    view = wait(actions, run, 800)
    assert view.status == "finished", view.failure
    return run


ASKED = (
    [Question(prompt="Hello, this is Mira.")],
    CompareOptions(sampling=Sampling(max_new_tokens=6)),
)


def fingerprint(replies: Iterator[Reply]) -> str:
    """Of the base that answered."""
    done = [*replies][-1]
    assert isinstance(done, Done)
    return done.base_fingerprint


def test_it_is_gated_before_it_is_trained_and_the_report_has_the_points(
    actions: Actions, run: RunFolder
) -> None:
    gate, report = actions.view(run).gate, run.report()
    assert gate is not None
    assert not gate.is_broken
    assert [point.name for point in gate.points] == ["16 bit", "quantized", "start"]
    assert gate.points[2].kl < gate.points[1].kl
    assert report is not None
    assert report.gate == gate.points
    assert report.scores[1].heldout_loss < report.scores[0].heldout_loss  # type: ignore[operator]
    assert actions.quality(run.plan().base.sha)[0].points == gate.points


def test_both_panes_share_the_packed_base(actions: Actions, run: RunFolder) -> None:
    def ask() -> Done:
        replies = list(actions.compare(run, *ASKED))
        assert isinstance(replies[-1], Done)
        return replies[-1]

    first = ask()
    assert first.same_base
    actions.close()  # the next one loads it again, and packs it again: its folder is gone
    run.packed_folder.rename(run.packed_folder.with_name("elsewhere"))
    again = ask()
    run.packed_folder.with_name("elsewhere").rename(run.packed_folder)
    assert again.base_fingerprint == first.base_fingerprint
    assert again.adapted == first.adapted


def test_it_is_published_for_its_low_bit_base_with_the_lines_that_load_it(
    actions: Actions, run: RunFolder, hub: FakeHub, tmp_path: Path
) -> None:
    as_alice(actions).publish(run, PushRequest(repo="alice/two-bits"))
    here = Path(snapshot_download("alice/two-bits", token=ALICE, local_dir=tmp_path / "back"))
    card = (here / "README.md").read_text()
    assert 'load_quantized("demo", bits=2, group_size=64)' in card
    assert "## The base before training" in card
    theirs = PeftModel.from_pretrained(load_quantized(BASE_FOLDER, bits=2, device="cpu"), here)
    ours = PeftModel.from_pretrained(
        load_quantized(BASE_FOLDER, bits=2, device="cpu"), run.adapter_folder
    )
    assert torch.equal(logits(theirs), logits(ours))
    assert fingerprint(actions.compare_adapter(str(here), *ASKED)) == fingerprint(
        actions.compare(run, *ASKED)
    )


def test_with_its_packed_base_it_is_loaded_from_one_place(
    actions: Actions, run: RunFolder, hub: FakeHub, tmp_path: Path
) -> None:
    as_alice(actions).publish(run, PushRequest(repo="alice/along", with_base=True))
    here = Path(snapshot_download("alice/along", token=ALICE, local_dir=tmp_path / "back"))
    assert 'base = load_packed("alice/along")' in (here / "README.md").read_text()
    theirs = PeftModel.from_pretrained(load_packed("alice/along", device="cpu", token=ALICE), here)
    dtype = compute_dtype("cpu")
    ours = PeftModel.from_pretrained(load_lowbit(run.packed_folder, "cpu", dtype), here)
    assert torch.equal(logits(theirs), logits(ours))
    assert fingerprint(actions.compare_adapter(str(here), *ASKED)) == fingerprint(
        actions.compare(run, *ASKED)
    )


def test_for_the_16_bit_base_the_repair_is_taken_out(
    actions: Actions, run: RunFolder, hub: FakeHub, tmp_path: Path
) -> None:
    as_alice(actions).publish(run, PushRequest(repo="alice/whole", for_16_bit=True))
    here = Path(snapshot_download("alice/whole", token=ALICE, local_dir=tmp_path / "back"))
    assert (
        "the repair of the low-bit base that it was initialized with is taken out"
        in (here / "README.md").read_text()
    )
    assert json.loads((here / "adapter_config.json").read_text())["r"] == 16
    exported = PeftModel.from_pretrained(load_base(BASE_FOLDER, 16, "cpu").float(), here)
    wanted = PeftModel.from_pretrained(
        load_base(BASE_FOLDER, 16, "cpu").float(), run.adapter_folder
    )
    start = PeftModel.from_pretrained(load_base(BASE_FOLDER, 16, "cpu").float(), run.start_folder)
    with torch.no_grad():
        layers = zip(_loras(wanted), _loras(start), strict=True)
        for layer, first in layers:
            layer.base_layer.weight += layer.get_delta_weight("default")
            layer.base_layer.weight -= first.get_delta_weight("default")
    with wanted.disable_adapter():
        torch.testing.assert_close(logits(exported), logits(wanted), atol=1e-3, rtol=1e-3)
        assert not torch.allclose(
            logits(wanted), logits(load_base(BASE_FOLDER, 16, "cpu").float()), atol=1e-2
        )


def _loras(model: torch.nn.Module) -> list:
    return [m for m in model.modules() if hasattr(m, "lora_A")]


def test_quantize_prints_what_a_width_costs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qlora_space", "quantize", "demo", "--bits", "3", "--json"]
    environment = os.environ | {"QLORA_SPACE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    rows = json.loads(done.stdout)["rows"]
    assert [(row["bits"], row["init"]) for row in rows] == [(16, "zero"), (3, "zero"), (3, "eora")]
    assert {"bits", "init", "ppl", "kl", "bits_per_weight"} <= set(rows[0])
    assert rows[2]["kl"] < rows[1]["kl"]
    assert rows[1]["bits_per_weight"] == 3.297
    assert "3 bit eora" in done.stderr
