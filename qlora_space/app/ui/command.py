"""The command line that does the same as the form."""

import shlex

from qlora_space.app.ui.uploads import shown_name
from qlora_space.core.parsing import written_columns
from qlora_space.core.request import TrainingRequest


def shown_command(request: TrainingRequest) -> str:
    """`python -m qlora_space train ...` with the options that differ from the defaults, quoted."""
    words = ["python", "-m", "qlora_space", "train"]
    for name, value in request.model_dump(mode="json", exclude_defaults=True).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", _argument(name, value)]
    return shlex.join(words)


def _argument(name: str, value: object) -> str:
    if isinstance(value, dict):
        return written_columns(value)
    return shown_name(str(value)) if name == "dataset" else str(value)
