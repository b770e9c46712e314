import shlex

import pytest

from qlora_space.app.cli.commands import request_of
from qlora_space.app.cli.flags import train_command
from qlora_space.app.cli.main import build_parser
from qlora_space.core.request import TrainingRequest


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
    assert request_of(build_parser().parse_args(words[3:])) == request_


def test_the_defaults_make_the_shortest_command() -> None:
    assert train_command(TrainingRequest()) == "python -m qlora_space train"
