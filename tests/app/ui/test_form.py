from dataclasses import replace

import gradio as gr
import pytest

from qlora_space.app.ui.draft import Draft, examine, readiness, request_from
from qlora_space.app.ui.form import GROUPS, build_field, form_values, group_of, placeholders
from qlora_space.app.ui.new_run import build_new_run
from qlora_space.app.ui.render import plan as render_plan
from qlora_space.core.errors import DatasetError, HubError, ModelError
from qlora_space.core.inspection import Inspection
from qlora_space.core.request import TrainingRequest, parse_request
from qlora_space.core.visitor import Visitor
from qlora_space.core.wording import rough_duration
from tests.app.ui.fake import GPU, FakeActions
from tests.plan.test_resolve import within

DEFAULTS = {name: field.default for name, field in TrainingRequest.model_fields.items()}


def test_the_form_has_every_field_of_the_request_and_no_other(actions: FakeActions) -> None:
    with gr.Blocks():
        fields = build_new_run(actions, gr.Textbox(), gr.State(""), gr.State("")).fields
    assert list(fields) != []
    assert set(fields) == set(TrainingRequest.model_fields)
    assert {group_of(name) for name in fields} - {"training"} <= set(GROUPS)


@pytest.mark.parametrize("num_gpus", [1, 2])
def test_the_form_has_gpus_where_there_are_several(
    actions: FakeActions, num_gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware = actions.hardware().model_copy(update={"num_gpus": num_gpus})
    monkeypatch.setattr(actions, "hardware", lambda: hardware)
    with gr.Blocks():
        fields = build_new_run(actions, gr.Textbox(), gr.State(""), gr.State("")).fields
    assert fields["num_processes"].visible == (num_gpus > 1)
    assert fields["optim"].visible


def test_an_untouched_form_is_the_default_request(actions: FakeActions) -> None:
    with gr.Blocks():
        fields = build_new_run(actions, gr.Textbox(), gr.State(""), gr.State("")).fields
    values = {name: field.value for name, field in fields.items()}  # type: ignore[attr-defined]
    assert request_from(actions, values) == TrainingRequest()


def test_the_empty_fields_of_mixed_bits_say_what_they_come_to() -> None:
    fields = {name: build_field(name) for name in ("mean_bits", "base_gib")}
    for plan, expected in (
        (within(7.5), ["Chosen for you: 2.69", "No limit"]),
        (within(20), ["Not mixed", "No limit"]),
    ):
        assert [u["placeholder"] for u in placeholders(fields, plan).values()] == expected


def test_the_start_button_says_what_is_missing(actions: FakeActions) -> None:
    def label(**values: object) -> str:
        draft = examine(actions, DEFAULTS | values, Draft())  # type: ignore[arg-type]
        words, is_ready = readiness(draft)
        assert is_ready == (words == "Start training")
        return words

    assert label() == "Start training"
    assert label(dataset="") == "Choose a dataset"
    assert label(base=None) == "Choose a base"
    assert label(dataset="broken") == "Fix 1 error in the data"
    assert label(dataset="nobody/x") == "Fix the dataset"
    assert label(base="nobody/x") == "Fix the base"
    assert label(r="many") == "Correct the settings"
    assert label(base="Qwen/Qwen3-235B").startswith("Does not fit: ")
    silent = Draft(data_error=HubError("The Hub does not answer.", "Try again."))
    assert readiness(silent) == ("Can't reach the Hub", False)
    ready = examine(actions, DEFAULTS, Draft())
    assert readiness(ready, "Demo") == ("Start after “Demo”", True)


@pytest.mark.parametrize(
    "request_",
    [
        TrainingRequest(),
        TrainingRequest(columns={"prompt": "q", "completion": "a"}, r=4, learning_rate=3e-5),
        TrainingRequest(gradient_checkpointing=True, packing=False, format="text", preset="quick"),  # type: ignore[arg-type]
        TrainingRequest(gradient_checkpointing=False, optim="adamw_torch", bits=8, max_steps=7),
    ],
)
def test_a_form_filled_from_a_request_gives_the_same_request(
    actions: FakeActions, request_: TrainingRequest
) -> None:
    assert request_from(actions, form_values(request_)) == request_


def test_the_data_is_inspected_again_only_when_the_inspection_would_change(
    actions: FakeActions,
) -> None:
    inspected: list[str] = []
    inspect = actions.inspect

    def counting(request: TrainingRequest) -> Inspection:
        inspected.append(request.dataset)
        return inspect(request)

    actions.inspect = counting  # type: ignore[method-assign]
    actions.plan = lambda request: None  # type: ignore[assignment, return-value, method-assign]
    first = examine(actions, DEFAULTS, Draft())
    examine(actions, DEFAULTS | {"r": 8, "bits": 8}, first)  # type: ignore[arg-type]
    assert inspected == ["demo"]
    examine(actions, DEFAULTS | {"max_length": 64}, first)  # type: ignore[arg-type]
    assert inspected == ["demo", "demo"]


def test_a_bug_below_becomes_a_sentence_with_a_number(actions: FakeActions) -> None:
    actions.inspect = lambda request: 1 / 0  # type: ignore[assignment, return-value, method-assign]
    draft = examine(actions, DEFAULTS, Draft())
    assert draft.error is not None
    assert "Something unexpected happened (id " in draft.error.what
    assert "ZeroDivision" not in str(draft.error)


def test_strangers_cannot_name_folders_of_the_server(actions: FakeActions) -> None:
    actions.settings = replace(actions.settings, is_space=True)
    space = actions.for_visitor(Visitor("hub:1"))
    for value in ("/etc/passwd", "../x", "~/x", "tests"):
        with pytest.raises(DatasetError):
            request_from(space, {"dataset": value})
        with pytest.raises(ModelError):
            request_from(space, {"base": value})
    assert request_from(space, {"dataset": "owner/name", "base": "gpt2"}) == parse_request(
        {"dataset": "owner/name", "base": "gpt2"}
    )


def test_a_run_that_takes_long_on_a_cpu_has_a_quick_look_whose_minutes_are_those_of_its_plan(
    actions: FakeActions,
) -> None:
    slow = DEFAULTS | {"base": "Qwen/Qwen3-0.6B"}
    draft = examine(actions, slow, Draft())
    assert draft.plan
    assert draft.quick
    assert draft.quick.estimate.seconds < draft.plan.estimate.seconds / 2
    minutes = f"Quick look: about {rough_duration(draft.quick.estimate.seconds)}"
    assert minutes in render_plan.card(draft.plan, {}, "", draft.quick)
    pressed = examine(actions, slow | {"preset": "quick"}, draft)
    assert pressed.plan
    assert pressed.plan.estimate == draft.quick.estimate
    assert pressed.quick is None
    assert examine(actions, DEFAULTS, Draft()).quick is None, "minutes as it is"
    assert examine(actions, slow | {"max_steps": 9000}, Draft()).quick is None, "no shorter"
    actions.machine = GPU
    assert examine(actions, slow, Draft()).quick is None
