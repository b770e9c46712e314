"""What stands in a run folder is readable by all, whatever became of it."""

import json
from pathlib import Path

import pytest

from qlora_space.core.comparison import Question, Turn
from qlora_space.core.events import Paused, Started
from qlora_space.core.processes import start_time
from qlora_space.places.worker import _left_the_queue
from qlora_space.runs import (
    EventLog,
    Publication,
    list_runs,
    read_events,
    step_to_resume,
    view_of,
)
from tests.runs.folders import demo_run


def test_a_damaged_run_does_not_hide_the_others(tmp_path: Path) -> None:
    sound, damaged = demo_run(tmp_path), demo_run(tmp_path)
    (damaged.path / "plan.json").write_bytes(b"")
    EventLog(sound.events_file).append(Started(place="here", pid=1, pid_start_time=0.0))
    with sound.events_file.open("ab") as file:
        file.write(b'{"kind":"met\x00\n')
    names = {run.name() for run in list_runs(tmp_path / "runs")}
    assert sound.name() in names
    assert any(name.startswith("Damaged run") for name in names)
    assert [event.kind for event in read_events(sound.events_file)[0]] == ["started"]


@pytest.mark.parametrize(("keep", "stop"), [(True, "keep"), (False, "discard")])
def test_a_stop_request_has_no_content_so_that_a_full_disk_takes_it(
    tmp_path: Path, keep: bool, stop: str
) -> None:
    run = demo_run(tmp_path)
    assert run.stop_request() is None
    before = set(run.path.iterdir())
    run.ask_to_stop(keep)
    (left,) = set(run.path.iterdir()) - before
    assert left.stat().st_size == 0
    assert run.stop_request() == stop
    run.clear_control_requests()
    assert run.stop_request() is None


def test_discard_wins_over_keep(tmp_path: Path) -> None:
    run = demo_run(tmp_path)
    run.ask_to_stop(keep=False)
    run.ask_to_stop(keep=True)
    assert run.stop_request() == "discard"


def test_leaving_the_queue_keeps_the_adapter_of_an_earlier_attempt(tmp_path: Path) -> None:
    run = demo_run(tmp_path)
    run.adapter_folder.mkdir()
    (run.adapter_folder / "adapter_model.safetensors").write_bytes(b"x")
    run.ask_to_stop(keep=False)
    assert _left_the_queue(run, 100).kind == "paused"
    assert run.has_adapter


def test_a_run_that_was_paused_before_its_first_checkpoint_can_begin_again(tmp_path: Path) -> None:
    run = demo_run(tmp_path)
    log = EventLog(run.events_file)
    log.append(Started(place="here", pid=1, pid_start_time=start_time(1)))
    assert step_to_resume(run, view_of(run)) is None
    log.append(Paused(step=0, why="signal"))
    assert step_to_resume(run, view_of(run)) == 0


def test_a_run_remembers_where_it_was_published(tmp_path: Path) -> None:
    run = demo_run(tmp_path)
    assert run.publications() == []
    for name in ("first", "second"):
        done = Publication(
            repo=f"ada/{name}", url="u", commit="c", num_files=7, created=True, time=1.0
        )
        run.add_publication(done)
    assert [each.repo for each in run.publications()] == ["ada/first", "ada/second"]
    run.add_publication(done.model_copy(update={"repo": "a\u2028b"}))
    assert run.publications()[-1].repo == "a\u2028b"


def test_a_name_from_a_mirror_of_somebody_elses_run_is_plain(tmp_path: Path) -> None:
    run = demo_run(tmp_path)
    (run.path / "name").write_text("\u202etxt.exe\x1b[2J\n" + "x" * 200)
    assert run.name() == "txt.exe [2J " + "x" * 68
    (run.path / "name").write_text("\u200b\n")
    assert run.name() == f"Run {run.id[:8]}"


def test_a_held_out_conversation_is_asked_with_all_that_was_said_before(
    tmp_path: Path,
) -> None:
    run = demo_run(tmp_path)
    turns = [("system", "Be brief."), ("user", "Where?")]
    longer = [("user", "Who?"), ("assistant", "Mira."), ("user", "Where?")]
    lines = [
        {"messages": [{"role": r, "content": c} for r, c in each], "expected": "In Olm."}
        for each in (turns, longer)
    ]
    run.data_folder.mkdir()
    file = run.data_folder / "eval_examples.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert run.heldout_questions(8) == [
        Question(prompt="Where?", expected="In Olm.", system="Be brief."),
        Question(
            prompt="Where?", expected="In Olm.", history=((Turn(prompt="Who?", answer="Mira."),),)
        ),
    ]
