"""Flags in, sentences on stderr and exit status out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_space.core.request import TrainingRequest
from tests.command_line import run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_SPACE_HOME", str(folder))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield folder


@pytest.mark.parametrize("command", [("plan",), ("doctor",), ("runs",)])
def test_without_json_nothing_goes_to_stdout(home: Path, command: tuple[str, ...]) -> None:
    result = run(*command)
    assert (result.status, result.out) == (0, "")
    assert result.err


@pytest.mark.parametrize("command", ["plan", "train"])
def test_help_lists_every_field_of_a_request(command: str) -> None:
    shown = run(command, "--help").out
    missing = [n for n in TrainingRequest.model_fields if f"--{n.replace('_', '-')}" not in shown]
    assert not missing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "--r", "0"), "r is '0': it should be greater than or equal to 1"),
        (("plan", "--learning-rate", "abc"), "learning_rate is 'abc': it should be a valid number"),
        (("plan", "--learning-rate", "nan"), "learning_rate is 'nan'"),
        (("plan", "--warmup-steps", "inf"), "warmup_steps is 'inf'"),
        (("plan", "--bits", "5"), "bits is '5': it should be 16, 8, 4, 3 or 2"),
        (("plan", "--max-length", "1"), "max_length is '1'"),
        (("plan", "--eval-steps", "0"), "eval_steps is '0'"),
        (("plan", "--dataset", ""), "dataset is ''"),
        (("plan", "--columns", "prompt"), "columns is 'prompt': write it as field=column"),
        (("train", "--max-length", "16"), "Set max_length to"),
        (("plan", "--max-length", "99999"), "max_length is 99999, but demo reads at most 2048"),
        (("runs", "show", "nonsense"), "There is no run 'nonsense'"),
        (("runs", "show"), "No run was named"),
        (("runs", "resume", "nonsense"), "There is no run 'nonsense'"),
        (("train", "--resume", "nonsense"), "There is no run 'nonsense'"),
        (("train", "--resume", "latest", "--r", "8"), "r cannot be changed while resuming"),
        (("compare", "--run", "nonsense", "--prompt", "x"), "There is no run 'nonsense'"),
        (("publish", "--run", "nonsense", "--repo", "a/b"), "There is no run 'nonsense'"),
        (("compare", "--adapter", "/", "--prompt", "x"), "adapter_model.safetensors"),
    ],
)  # fmt: skip
def test_what_the_user_must_change_is_one_sentence(
    home: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = run(*arguments)
    assert result.status == 2
    assert result.out == ""
    assert "Traceback" not in result.err
    assert words in result.err.splitlines()[-1]


def test_unknown_flags_and_verbs_have_status_2() -> None:
    assert run("plan", "--nonsense", "4").status == 2
    assert run("nonsense").status == 2
    assert run().status == 2


def test_a_port_that_is_none_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_SERVER_PORT", "abc")
    assert "GRADIO_SERVER_PORT is 'abc'" in run("doctor").sentence
