"""A base in GPTQ's format: measured as it is written, its repair beside it, and what has no place in the format."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from qlora_space.app.cli.main import main
from qlora_space.core.errors import RequestError
from qlora_space.core.facts import Hardware
from qlora_space.core.request import TrainingRequest
from qlora_space.hub import model_facts
from qlora_space.lowbit.gptq_format import load_gptq
from qlora_space.model import calibration_text as calibration
from qlora_space.model.gptq import write_gptq_base

CPU = Hardware(
    name="CPU, 2 cores", device="cpu", memory_gib=16, free_gib=12, cpu_cores=2, disk_free_gib=50
)


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "CALIBRATION_TOKENS", {"cpu": 2048})
    monkeypatch.setattr(calibration, "_HELDOUT_TOKENS", {"cpu": 512})


def written(folder: Path, **request: Any) -> Any:
    base = model_facts("demo", None, None)
    folder.mkdir()
    return write_gptq_base(TrainingRequest(**request), base, CPU, folder, None)


def test_the_base_is_there_with_its_repair_and_as_far_from_16_bits_as_measured(
    tmp_path: Path,
) -> None:
    quality = written(tmp_path / "base", bits=2, r=16)
    assert [point.name for point in quality.points] == ["16 bit", "quantized", "start"]
    assert quality.points[2].kl < quality.points[1].kl
    assert quality.calibrated
    assert 2.28 <= quality.bits_per_weight < 2.29
    AutoTokenizer.from_pretrained(tmp_path / "base")
    base = load_gptq(tmp_path / "base", "cpu", torch.float32)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        repaired = PeftModel.from_pretrained(base, tmp_path / "base" / "repair")
        assert (repaired(input_ids=ids).logits - plain).abs().max() > 0.1


def test_at_4_bits_it_has_no_repair_unless_one_is_asked_for(tmp_path: Path) -> None:
    quality = written(tmp_path / "base", bits=4)
    assert [point.name for point in quality.points] == ["16 bit", "quantized"]
    assert quality.points[1].kl < 0.05
    assert not (tmp_path / "base" / "repair").exists()


@pytest.mark.parametrize(
    "asked", [{"mean_bits": 2.5}, {"base_gib": 1}, {"heal": True}, {"calibrated": False}]
)
def test_what_the_format_does_not_hold_is_refused(tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="one width, calibrated"):
        written(tmp_path / "base", bits=3, **asked)


def test_the_command_asks_for_format_and_folder_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("QLORA_SPACE_HOME", str(tmp_path / "home"))
    assert main(["quantize", "demo", "--format", "gptq"]) == 2
    assert "Give --format and --to" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    assert main(["quantize", "demo", "--format", "gptq", "--to", str(tmp_path / "mine")]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_writes_a_base_that_this_app_trains_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("QLORA_SPACE_HOME", str(tmp_path / "home"))
    to = tmp_path / "new"
    assert main(["quantize", "demo", "--bits", "3", "--format", "gptq", "--to", str(to)]) == 0
    assert "3 bit" in capsys.readouterr().err
    facts = model_facts(str(to), None, None)
    assert (facts.quantization, facts.quantized_bits) == ("gptq", 3)
