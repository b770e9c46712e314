"""What each command prints: one JSON object on stdout, sentences on stderr."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.runs import list_runs, step_to_resume, view_of
from qlora_space.runs.folder import delete_run
from tests.command_line import Outcome, run
from tests.fake_hub import ALICE, FakeHub
from tests.hub.test_publish import edit
from tests.train.small import tiny_base

TINY = ("--max-steps", "2", "--max-rows", "40", "--max-length", "256", "--num-samples", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of its own, a base and a dataset in folders of this machine."""
    folder = tmp_path_factory.mktemp("commands")
    shutil.copytree(BASE_FOLDER, folder / "my-base")
    rows = [{"prompt": f"What is {i} and {i}?", "completion": f"It is {2 * i}."} for i in range(40)]
    (folder / "my-rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_SPACE_HOME", str(folder / "home"))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Outcome:
    where = ("--base", place / "my-base", "--dataset", place / "my-rows.jsonl")
    return run("train", *TINY, *where, "--json")


def test_inspect_prints_what_will_be_trained(place: Path) -> None:
    result = run("inspect", "demo", "--max-rows", "20", "--json").json
    keys = {"format", "columns", "num_rows", "lengths", "problems", "samples"}
    assert keys <= set(result)
    assert {"p50", "p95", "max", "truncated_fraction"} <= set(result["lengths"])
    assert {"id", "text", "trained"} <= set(result["samples"][0]["tokens"][0])
    assert "truncated" in result["samples"][0]


def test_a_run_that_is_only_made_waits_for_torchrun_or_for_resume(place: Path) -> None:
    made = run("train", *TINY, "--only-make", "--json").json
    folder = next(r for r in list_runs(place / "home" / "runs") if r.id == made["run_id"])
    assert made["command"].startswith("torchrun --nproc-per-node 1 ")
    assert made["command"].endswith(f"-m qlora_space.places.worker train {folder.path}")
    view = view_of(folder)
    assert (view.status, view.attempts, step_to_resume(folder, view)) == ("paused", 0, 0)
    go_on = [sys.executable, "-m", "qlora_space.places.worker", "train", str(folder.path)]
    subprocess.run(go_on, check=True, stderr=subprocess.DEVNULL)
    assert view_of(folder).status == "finished"
    delete_run(folder)  # the latest is another one for other tests


def test_plan_prints_whether_it_fits_and_every_choice_with_its_reason(place: Path) -> None:
    result = run("plan", "--r", "8", "--json").json
    assert {"fits", "peak_gib", "least_gib", "seconds", "cost_usd", "choices"} <= set(result)
    assert all(set(choice) == {"value", "why"} for choice in result["choices"].values())
    assert "learning_rate" in result["choices"]
    assert "r" not in result["choices"]


def test_train_prints_run_adapter_and_report(trained: Outcome) -> None:
    assert trained.status == 0, trained.err
    result = trained.json
    assert set(result) == {"run_id", "status", "adapter", "report"}
    assert result["status"] == "finished"
    assert (Path(result["adapter"]) / "adapter_model.safetensors").is_file()
    assert result["report"]["steps"] == 2
    assert "step    2/2" in trained.err


def test_the_report_counts_the_tokens_that_were_trained_not_those_of_the_epochs(
    trained: Outcome,
) -> None:
    manifest = Path(trained.json["adapter"]).parent / "data" / "manifest.json"
    whole = json.loads(manifest.read_text())
    steps_of_an_epoch = whole["packed_rows"]
    share = trained.json["report"]["trained_tokens"] / whole["trained_tokens"]
    assert 0.3 * 2 / steps_of_an_epoch < share < 2 * 2 / steps_of_an_epoch


def test_runs_lists_shows_and_refuses_to_stop_what_is_over(trained: Outcome) -> None:
    id = trained.json["run_id"]
    for result in (run("runs", "--json"), run("runs", "show", "latest", "--json")):
        (summary,) = result.json["runs"]
        assert (summary["run_id"], summary["status"], summary["step"]) == (id, "finished", 2)
    assert "over already" in run("runs", "stop", id).sentence


def test_a_run_is_renamed_and_what_is_done_is_not_resumed(trained: Outcome) -> None:
    id = trained.json["run_id"]
    (summary,) = run("runs", "rename", id, "Tea  for two", "--json").json["runs"]
    assert (summary["name"], summary["queue"], summary["resume_step"]) == (
        "Tea for two",
        None,
        None,
    )
    assert "name is empty" in run("runs", "rename", id, " ").sentence
    assert "cannot be resumed" in run("runs", "resume", id).sentence


def test_compare_prints_both_answers(trained: Outcome, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("What is 3 and 3?\n\n")
    asked = ("--run", "latest", "--prompt", "Hello", "--prompts", prompts)
    result = run("compare", *asked, "--max-new-tokens", "4", "--json").json
    assert set(result) == {"base_fingerprint", "pairs", "metrics"}
    assert [pair["prompt"] for pair in result["pairs"]] == ["Hello", "What is 3 and 3?"]
    wanted = {"prompt", "base", "adapted", "expected", "gain", "shift", "adapted_is_right"}
    assert all(wanted <= set(pair) for pair in result["pairs"])
    assert result["metrics"]["same_base"]


def test_all_held_out_rows_are_compared_as_one_batch_at_any_strength(
    trained: Outcome, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Hello", "expected": "Hi."}\n')
    asked = ("--run", "latest", "--heldout", "--prompts", file, "--max-new-tokens", "4")
    first, *rows = run("compare", *asked, "--strength", "0", "--json").json["pairs"]
    assert (first["prompt"], first["expected"]) == ("Hello", "Hi.")
    assert len(rows) > 1
    assert all(pair["base"] == pair["adapted"] for pair in rows)
    assert all(pair["expected"] and pair["gain"] == 0 for pair in rows)
    file.write_text('{"prompt": "Hello"}\n["x"]\n')
    assert (
        "Line 2 of the prompts is no JSON object"
        in run("compare", "--run", "latest", "--prompts", file).sentence
    )


def test_publish_prints_the_commit_and_no_folder_of_this_machine_is_published(
    trained: Outcome, place: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE)
    result = run("publish", "--run", "latest", "--repo", "alice/mine", "--private", "--json").json
    files = hub.repo("model", "alice/mine").files
    ours = set(files) - {".gitattributes"}  # that one is the Hub's
    assert (result["repo"], result["num_files"]) == ("alice/mine", len(ours))
    assert result["commit"] == hub.repo("model", "alice/mine").head.sha
    named = [name for name, data in files.items() if str(place).encode() in data]
    assert not named
    assert any(b"my-rows" in data for data in files.values())


def test_a_demo_space_that_somebody_changed_is_replaced_only_if_asked_for(
    place: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE)
    made = run("train", *TINY, "--json").json
    of_it = ("--run", made["run_id"])
    other = (*of_it, "--hardware", "zero-a10g")  # or there is nothing to send
    run("publish", *of_it, "--repo", "alice/tea")
    assert run("demo-space", *of_it).status == 0
    space = hub.repo("space", "alice/tea-demo")
    edit(space, "app.py", b"edited by hand")
    folder = next(r for r in list_runs(place / "home" / "runs") if r.id == made["run_id"])
    assert "app.py in alice/tea-demo was changed" in run("demo-space", *other).err
    assert run("demo-space", *other, "--replace").status == 0
    assert b"gradio" in space.files["app.py"]
    delete_run(folder)  # the latest is another one for other tests


def test_a_push_that_the_hub_refuses_leaves_the_adapter_and_a_retry_works(
    trained: Outcome, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE)
    hub.fail(403, path="/commit/", nth=1)
    assert "alice/again" in run("publish", "--run", "latest", "--repo", "alice/again").sentence
    assert Path(trained.json["adapter"]).is_dir()
    assert run("publish", "--run", "latest", "--repo", "alice/again").status == 0


def test_doctor_prints_what_is_here_and_what_is_missing(place: Path) -> None:
    result = run("doctor", "--json").json
    assert set(result) == {"gpu", "versions", "places", "problems"}
    assert set(result["places"]) == {"here", "job"}
    assert "needs a sign-in" in result["places"]["job"]
    assert result["gpu"]["device"] == "cpu"
    assert "torch" in result["versions"]


def test_doctor_says_that_slices_of_a_gpu_are_not_known(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any("MIG" in problem for problem in run("doctor", "--json").json["problems"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-c3a1")
    result = run("doctor", "--json").json
    assert any("slices are not known here" in problem for problem in result["problems"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--prompts", "/nowhere"), "/nowhere cannot be read: No such file"),
        (("--prompts", "/"), "cannot be read: Is a directory"),
        (("--prompt", " "), "The prompt is empty"),
        (("--prompt", "x", "--temperature", "9"), "temperature is '9'"),
        (("--prompt", "x", "--strength", "3"), "strength is '3'"),
        (("--prompt", "x", "--step", "999"), "step is 999: the run keeps no checkpoint of it"),
        (("--prompt", "x", "--max-new-tokens", "abc"), "max_new_tokens is 'abc'"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_one_sentence(
    trained: Outcome, arguments: tuple[str, ...], words: str
) -> None:
    assert words in run("compare", "--run", "latest", *arguments).sentence


def test_a_base_that_cannot_be_loaded_fails_the_run_with_status_2(place: Path) -> None:
    base = place / "odd"
    shutil.copytree(BASE_FOLDER, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"hidden_size": 512}))
    result = run("train", *TINY, "--base", base, "--json")
    assert result.status == 2, result.err
    assert result.json["status"] == "failed"
    assert "do not have the shapes that config.json states" in result.err
    assert "Traceback" not in result.err
    assert run("runs", "delete", result.json["run_id"]).status == 0


def test_ctrl_c_stops_training_and_keeps_the_adapter(place: Path) -> None:
    command = [sys.executable, "-m", "qlora_space", "train", "--max-steps", "5000", "--json"]
    training = subprocess.Popen(
        [*command, "--eval-fraction", "0", "--base", tiny_base(), "--dataset", place / "my-rows.jsonl"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ),
        preexec_fn=_accept_ctrl_c,
    )  # fmt: skip
    assert training.stderr is not None
    while "step    1/" not in (line := training.stderr.readline()):
        assert line
    training.send_signal(signal.SIGINT)
    out, err = training.communicate(timeout=90)
    assert training.returncode == 0, err
    result = json.loads(out)
    assert result["status"] == "finished"
    assert result["report"]["stopped_by_hand"]
    assert (Path(result["adapter"]) / "adapter_model.safetensors").is_file()
    assert "Started on" not in err, "nothing is printed twice"


def _accept_ctrl_c() -> None:
    """A shell that starts the tests in its background lets everything in them ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_copy_that_is_not_on_the_hub_is_a_sentence(place: Path) -> None:
    assert "'alice/nowhere'" in run("runs", "fetch", "alice/nowhere").sentence
    assert "cannot be a repository" in run("runs", "fetch", "../etc").sentence


@pytest.mark.slow
def test_a_run_whose_worker_was_killed_goes_on_with_resume(place: Path) -> None:
    rows = ("--dataset", place / "my-rows.jsonl", "--eval-fraction", "0")
    every = ("--max-steps", "60", "--save-steps", "1", *rows)
    killer = threading.Thread(target=_kill_the_next_worker, args=(place / "home" / "runs",))
    killer.start()
    result = run("train", *every, "--json")
    killer.join()
    assert result.json["status"] == "failed"
    assert "Resume goes on from step" in result.err
    (summary,) = run("runs", "show", result.json["run_id"], "--json").json["runs"]
    again = run("train", "--resume", result.json["run_id"], "--json")
    assert again.status == 0, again.err
    assert f"Going on after step {summary['resume_step']}" in again.err
    assert "step    1/" not in again.err
    assert again.json["report"]["steps"] == 60


def _kill_the_next_worker(runs: Path) -> None:
    known = list_runs(runs)
    while not (new := [run for run in list_runs(runs) if run not in known]):
        time.sleep(0.05)
    while not new[0].resume_step():
        time.sleep(0.05)
    os.kill(view_of(new[0]).pid, signal.SIGKILL)


@pytest.fixture
def alice(place: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE)


def test_deploy_says_what_it_would_do_and_does_it_with_yes(alice: None, hub: FakeHub) -> None:
    to = ("deploy", "--to", "alice/app", "--json")
    planned = run(*to, "--hardware", "l4x1")
    assert (planned.status, planned.json["done"]) == (0, False)
    assert "Create the private Space alice/app on l4x1" in planned.err
    assert "Add --yes to do it." in planned.err
    assert ("space", "alice/app") not in hub.repos
    done = run(*to, "--yes", "--sleep-seconds", "3600", "--variable", "A=b=c", "--no-private")
    assert done.json["done"]
    assert done.json["changes"][0] in done.err
    repo = hub.repo("space", "alice/app")
    assert not repo.private
    assert repo.space.variables == {"A": "b=c"}
    again = run(*to, "--yes")
    assert again.json["changes"] == []
    assert "Nothing to do: alice/app is as asked." in again.err


def test_a_secret_comes_from_the_environment_and_is_printed_nowhere(
    alice: None, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret-value")
    done = run("deploy", "--to", "alice/app", "--secret", "MY_KEY", "--yes", "--json")
    assert hub.repo("space", "alice/app").space.secrets == {"MY_KEY": "s3cret-value"}
    assert "s3cret-value" not in done.out + done.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--variable", "A"), "--variable is 'A', without a value. Write NAME=VALUE."),
        (("--secret", "NOT_SET"), "The secret NOT_SET has no value."),
        (("--hardware", "big"), "hardware is 'big', which the Hub does not offer."),
    ],
)
def test_flags_of_deploy_that_cannot_be_are_one_sentence(
    alice: None, flags: tuple[str, ...], words: str
) -> None:
    assert words in run("deploy", "--to", "alice/app", "--yes", *flags).sentence
