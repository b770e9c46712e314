"""What Python draws of the page of a run."""

from typing import Any

import gradio as gr

from qlora_space.app.ui.render import run as render_run
from qlora_space.app.ui.run_page import RunPage, build_run_page, log_tail
from qlora_space.core.events import Metric, Note, Paused, Phase, Started
from qlora_space.core.export import EXPORT_FILE, Agreement, Exported, ExportOptions
from qlora_space.core.request import TrainingRequest
from qlora_space.runs import EventLog, create_run
from tests.app.ui.fake import FakeActions, scripted_run


def run_page(actions: FakeActions) -> RunPage:
    with gr.Blocks(), gr.Tabs() as tabs, gr.Tab():
        return build_run_page(actions, gr.Textbox(), tabs)


def shown(page: RunPage, updates: dict[Any, Any]) -> set[str]:
    """Names of the buttons that can be seen."""
    names = {button: name for name, button in page.buttons.by_name.items()}
    return {names[each] for each, update in updates.items() if each in names and update["visible"]}


def test_buttons_are_those_of_the_runs_state(actions: FakeActions) -> None:
    page = run_page(actions)
    run = create_run(
        actions.settings.runs_folder, TrainingRequest(), actions.plan(TrainingRequest())
    )
    log = EventLog(run.events_file)
    log.append(Started(place="CPU", pid=1, pid_start_time=0.0))
    log.append(Phase(name="train", done=0, total=60))
    training = page.updates(actions, run)
    assert shown(page, training) == {"stop", "save", "sample"}
    log.append(Paused(step=1, why="signal"))
    paused = page.updates(actions, run)
    assert shown(page, paused) == {"resume", "again", "delete"}
    assert training[page.state] != paused[page.state]


def test_the_log_has_a_readable_line_for_each_step_and_keeps_old_warnings() -> None:
    warning = Note(seq=0, level="warning", text="Free memory is low.")
    values = {"loss": 0.5321, "learning_rate": 2e-4, "tokens_per_second": 3400.0}
    steps = [Metric(seq=i, step=i, total_steps=900, values=values) for i in range(1, 901)]
    markup = render_run.log([warning, *steps])
    assert "Step 900 of 900: loss 0.532, learning rate 2e-4, 3.4k tok/s." in markup
    assert "Free memory is low." in markup
    assert markup.count("<li") == 301


def test_the_process_log_shows_no_folder_of_the_server(actions: FakeActions) -> None:
    tail = log_tail(actions, scripted_run(actions, "a", "finished"))
    assert "loading …/base" in tail
    assert str(actions.settings.home) not in tail


def test_a_run_with_an_adapter_offers_exports_with_what_was_found_of_them(
    actions: FakeActions,
) -> None:
    page, run = run_page(actions), scripted_run(actions, "a", "finished")
    run.adapter_folder.mkdir(exist_ok=True)
    weights = run.adapter_folder / "adapter_model.safetensors"
    weights.touch()
    assert page.updates(actions, run)[page.export.group]["visible"]
    folder = run.exports_folder / "merged"
    folder.mkdir(parents=True)
    found = Agreement(
        tokens=1234, top1=0.97, kl=0.01, largest_logit_difference=2.0, loss=0.5, adapter_loss=0.4
    )
    made = Exported(
        options=ExportOptions(), dtype="bfloat16", num_bytes=2_000_000, files=(), agreement=found
    )
    (folder / EXPORT_FILE).write_text(made.model_dump_json())
    shown = page.updates(actions, run)[page.export.outcome]
    assert "same next token at 97 % of 1,234" in shown
    assert f"runs/{run.id}/exports/merged.zip" in shown
    weights.unlink()
    assert not page.updates(actions, run)[page.export.group]["visible"]
