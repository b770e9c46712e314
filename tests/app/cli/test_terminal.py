"""Tables: off a terminal one line per row; nothing in a cell is taken for markup."""

import sys
from pathlib import Path

import pytest

from qlora_space.app.cli import terminal
from qlora_space.core.comparison import ComparedRow, PaneAnswer
from qlora_space.core.events import Started
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.plan import resolve
from qlora_space.runs import Measure, QueuePosition, RunFolder, RunView, Scores, create_run, fold
from tests.app.ui.fake import TWO_BITS, FakeActions, finished_report
from tests.plan.test_resolve import QWEN3_8B, gpu, rows
from tests.train.conftest import demo_plan

LONG = "a name that is wider than eighty columns " * 3


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    return [line.rstrip() for line in err.splitlines()]


def test_off_a_terminal_each_run_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"[bold]{LONG}"[:80]
    request = TrainingRequest(name=name)
    run = create_run(tmp_path, request, demo_plan().model_copy(update={"name": name}))
    view = fold([Started(place="CPU", pid=1, pid_start_time=0.0)])
    terminal.show_runs([(run, view), (run, RunView())], {run.id: QueuePosition(2, 89)})
    head, first, second = printed(capsys)
    assert head.split() == ["run", "status", "step", "started", "name"]
    assert first.startswith(run.id)
    assert name.strip() in first
    assert second.endswith("2 before it, starts in about 1.5 min")


def test_no_runs_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_runs([], {})
    assert printed(capsys) == ["There are no runs yet."]


def test_every_choice_of_a_plan_is_one_line_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = FakeActions(Settings(home=tmp_path)).plan(TrainingRequest())
    terminal.show_plan(plan)
    _, _, _, head, *rows = printed(capsys)
    assert head.split() == ["Setting", "Value", "Why"]
    assert len(rows) == len(plan.choices) > 3
    for row, choice in zip(rows, plan.choices, strict=True):
        assert row.split()[:1] == [choice.name]
        assert row.endswith(choice.why)


def test_a_plan_says_what_it_holds_at_most_and_what_it_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    request = TrainingRequest(max_length=2048, per_device_train_batch_size=2)
    fast = resolve(request, QWEN3_8B, rows(), gpu(121))
    terminal.show_plan(fast)
    most, least = fast.estimate.peak_gib, fast.estimate.least_gib
    assert printed(capsys)[2].endswith(f"{most:.1f} GiB of 121.0 free (needs at least {least:.1f})")
    plain = resolve(TrainingRequest(bits=8), QWEN3_8B, rows(), gpu(121))
    terminal.show_plan(plain)
    assert printed(capsys)[2].endswith(f"{plain.estimate.peak_gib:.1f} GiB of 121.0 free")


def test_a_report_has_a_line_for_base_and_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_report(
        finished_report().model_copy(
            update={
                "scores": (
                    Scores(name="base", heldout_loss=3.19, general_loss=1.42),
                    Scores(name="trained", heldout_loss=0.214, exact_match=0.94),
                )
            }
        )
    )
    _, summary, verdict, _, base, trained = printed(capsys)
    assert summary == "120 steps in 1 min 34 s, 3,380 tok/s, peak 1.34 GiB"
    assert verdict.startswith("Better on 100 held-out rows: loss 3.19 → 0.214 (95 % interval")
    assert base.split() == ["base", "-", "3.190", "24.29", "1.420"]
    assert trained.split() == ["trained", "94.0%", "0.214", "1.239", "-"]


def test_every_measure_of_the_answers_has_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    rows = (0.0,) * 30 + (1.0,) * 10
    right = Measure(name="number", base=rows[::-1], trained=rows)
    terminal.show_report(finished_report().model_copy(update={"measures": (right,)}))
    *_, fact, _, head, base, trained = printed(capsys)
    assert "Right number: 10 → 10 of 40 (not enough to tell)" in fact
    assert head.split()[:2] == ["right", "number"]
    assert (base.split()[1], trained.split()[1]) == ("25.0%", "25.0%")


def test_every_state_of_a_low_bit_base_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_quality([TWO_BITS])
    title, head, *rows = printed(capsys)
    assert title == "demo, measured on your held-out rows:"
    assert head.split() == ["base", "perplexity", "KL", "same", "next", "word"]
    assert [row.split()[:3] for row in rows] == [
        ["16", "bit", "30.80"],
        ["2", "bit", "56.40"],
        ["2", "bit", "eora"],
    ]


def test_answers_stand_side_by_side_and_their_markup_is_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = (PaneAnswer(text="[red]no[/red]\nsecond line"), PaneAnswer(text="yes :smile:"))
    terminal.show_row(ComparedRow(prompt="Where?", answers=answers))
    assert printed(capsys)[1:] == [
        "Where?",
        "base           adapted",
        "[red]no[/red]  yes :smile:",
        "second line",
    ]


def test_on_a_terminal_a_long_cell_wraps_and_the_id_of_a_run_stays_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run: RunFolder = create_run(
        tmp_path,
        TrainingRequest(),
        demo_plan().model_copy(update={"name": LONG}),
    )
    terminal.show_runs([(run, RunView())], {})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2
    assert any(run.id in line for line in lines)


def test_texts_of_others_give_the_terminal_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;title\x07\u202e"
    terminal.emit(f"A note: {evil}")
    terminal.show_row(
        ComparedRow(prompt=evil, answers=(PaneAnswer(text=evil), PaneAnswer(text=evil)))
    )
    shown = "\n".join(printed(capsys))
    assert "U+001B]0;titleU+0007U+202E" in shown
    assert "\u202e" not in shown
