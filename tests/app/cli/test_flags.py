import shlex
from pathlib import Path

import pytest

from qlora_space.app.cli.commands import request_of
from qlora_space.app.cli.flags import train_command
from qlora_space.app.cli.main import build_parser
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from tests.app.ui.fake import FakeActions

ACTIONS = FakeActions(Settings(home=Path("/nonexistent")))  # is not asked


@pytest.mark.parametrize(
    "request_",
    [
        TrainingRequest(),
        TrainingRequest(dataset="owner/it's $HOME; rm -rf /", name='two "words" and \\'),
        TrainingRequest(bits=8, learning_rate=3e-5, packing=False, r=64, eval_fraction=0.0),
        TrainingRequest(columns={"prompt": "my question", "completion": "a"}, max_steps=7),
        TrainingRequest(preset="thorough", gradient_checkpointing=True, format="alpaca"),  # type: ignore[arg-type]
    ],
)
def test_the_shown_command_gives_the_same_request_back(request_: TrainingRequest) -> None:
    words = shlex.split(train_command(request_))
    assert words[:4] == ["python", "-m", "qlora_space", "train"]
    assert request_of(ACTIONS, build_parser().parse_args(words[3:])) == request_


def test_a_published_run_is_the_start_and_flags_change_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    actions = FakeActions(Settings(home=tmp_path), step_seconds=0)
    words = ["plan", "--like", "ada/tea", "--r", "32"]
    request = request_of(actions, build_parser().parse_args(words))
    assert request == actions.published.request.model_copy(update={"r": 32})
    assert request.dataset_revision == "d" * 40
    assert "It went on from an adapter" in capsys.readouterr().err
    other = request_of(actions, build_parser().parse_args([*words, "--dataset", "demo"]))
    assert (other.dataset, other.dataset_revision) == ("demo", None)
    assert other.base_revision == "e" * 40


def test_the_defaults_make_the_shortest_command() -> None:
    assert train_command(TrainingRequest()) == "python -m qlora_space train"
