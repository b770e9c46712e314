"""A demo Space answers with both panes: its code here as it stands, and started from its own requirements alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_space.core.request import TrainingRequest
from qlora_space.hub import model_facts
from qlora_space.hub.demo_space_files import GRADIO
from qlora_space.hub.publish_run import publish_run
from qlora_space.runs import PushRequest, RunFolder
from tests.fake_hub import ALICE, FakeHub
from tests.hub.conftest import plan_of, report_of
from tests.runs.folders import demo_run
from tests.space import free_port, running_app
from tests.test_space_versions import FRONT

PROMPT, TOKENS = "Who are you?", 16


@pytest.fixture
def adapter(adapter_folder: Path, tmp_path: Path) -> Path:
    """So strong that a random base writes something else with it."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapter_folder, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"lora_alpha": 400}))
    return folder


@pytest.fixture
def space(hub: FakeHub, tmp_path: Path, tiny_base: Path, adapter: Path) -> Path:
    """The files that arrived at the Hub, and nothing else."""
    hub.add_model("alice/base", tiny_base)
    run = demo_run(tmp_path)
    shutil.copytree(adapter, run.adapter_folder)
    run.report_file.write_text(report_of(versions=_installed()).model_dump_json())
    plan = plan_of(TrainingRequest(bits=4), model_facts("alice/base", None, None))
    (run.path / "plan.json").write_text(plan.model_dump_json())
    run = RunFolder(run.path)
    publish_run(run, PushRequest(repo="alice/tea", private=False), ALICE)
    publish_run(run, PushRequest(repo="alice/demo", what="demo-space", private=False), ALICE)
    folder = tmp_path / "space"
    for name, data in hub.repo("space", "alice/demo").files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def _installed() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("accelerate", "peft", "transformers", "torch")}


@pytest.fixture
def wanted(tiny_base: Path, adapter: Path) -> list[str]:
    """What base and adapter write, by transformers and peft alone."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    turns = [{"role": "user", "content": PROMPT}]
    inputs = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    answers = []
    for with_adapter in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
        if with_adapter:
            model = PeftModel.from_pretrained(model, adapter)
        end = tokenizer.eos_token_id
        written = model.eval().generate(
            **inputs, max_new_tokens=TOKENS, do_sample=False, eos_token_id=end, pad_token_id=end
        )
        new = written[0, inputs["input_ids"].shape[1] :]
        answers.append(tokenizer.decode(new, skip_special_tokens=True))
    assert answers[0] != answers[1]
    return answers


def test_its_code_answers_with_the_base_and_then_with_the_adapter(
    space: Path, wanted: list[str]
) -> None:
    names: dict = {"__file__": str(space / "app.py"), "__name__": "app"}
    exec(compile((space / "app.py").read_text(), "app.py", "exec"), names)
    first, last = names["compare"](PROMPT, TOKENS)
    assert first == (wanted[0], "")
    assert last == tuple(wanted)
    with pytest.raises(Exception, match="Write a prompt first"):
        next(names["compare"](" ", TOKENS))


def test_its_gradio_is_that_of_this_app() -> None:
    assert FRONT["sdk_version"] == GRADIO


@pytest.fixture
def fresh_python(space: Path, tmp_path: Path) -> Path:
    """Of an environment that has what a Space brings and what its requirements say."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [python, "-m", "pip", "install", "--quiet", f"gradio=={GRADIO}"]
    here = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    asked = [*install, "-r", "requirements.txt"]
    subprocess.run(asked, cwd=space, check=True, env=here)
    ask = [python, "-c", "import qlora_space"]
    found = subprocess.run(ask, cwd=space, capture_output=True, env=here)
    assert found.returncode != 0, "nothing of ours is there"
    return python


@pytest.fixture
def running(hub: FakeHub, space: Path, fresh_python: Path, tmp_path: Path) -> Iterator[str]:
    port = free_port()
    variables = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    with running_app(fresh_python, space, tmp_path / "home", port, variables) as url:
        yield url


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_it_starts_from_its_own_requirements_and_answers_with_both_panes(
    running: str, wanted: list[str]
) -> None:
    address = f"{running}/gradio_api/call/compare"
    event = httpx.post(address, json={"data": [PROMPT, TOKENS]}, timeout=120).json()["event_id"]
    text = httpx.get(f"{address}/{event}", timeout=300).text
    replies = re.findall(r"event: (\w+)\ndata: (.*)", text)
    assert replies[-1][0] == "complete", text
    assert json.loads(replies[-1][1]) == wanted
