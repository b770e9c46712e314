"""Hostile text from datasets, models and logs stays text; every state that a person can meet has its words."""

import re
import time
from typing import Any, get_args

import pytest

from qlora_space.app.ui.form import LABELS
from qlora_space.app.ui.render import changes as render_changes
from qlora_space.app.ui.render import data as render_data
from qlora_space.app.ui.render import html as render
from qlora_space.app.ui.render import low_bit as render_low_bit
from qlora_space.app.ui.render import plan as render_plan
from qlora_space.app.ui.render import run as render_run
from qlora_space.app.ui.render import samples as render_samples
from qlora_space.app.ui.render import xray as render_xray
from qlora_space.app.ui.render.compare import prompt_chips
from qlora_space.core.comparison import Question
from qlora_space.core.errors import DatasetError
from qlora_space.core.events import Failed, Finished, Metric, Note, Phase, Sample, Started
from qlora_space.core.facts import Hardware, RowCounts
from qlora_space.core.inspection import Change, Problem, SampleRow, Token
from qlora_space.core.parsing import written_columns
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import gib
from qlora_space.plan import Plan, resolve
from qlora_space.runs import (
    LossChange,
    Measure,
    Quality,
    QueuePosition,
    Report,
    RunView,
    ScoreChange,
    fold,
)
from tests.app.ui.fake import (
    BASES,
    GPU,
    HOSTILE,
    LAPTOP,
    TWO_BITS,
    FakeActions,
    finished_report,
    gate,
    inspection,
    script,
)
from tests.plan.test_resolve import QWEN3_8B, gpu, rows, within

_MAPPED = Problem(
    code="guessed_columns",
    severity="warning",
    rows=1,
    message="m",
    fix="f",
    change=Change(field="columns", value=written_columns({"prompt": HOSTILE})),
)
_HOSTILE_ROW = SampleRow(
    tokens=(Token(id=1, text=HOSTILE, trained=True), Token(id=2, text=HOSTILE, trained=False)),
    truncated=True,
    num_tokens=3,
    cut_tokens=(Token(id=3, text=HOSTILE, trained=False),),
    prompt=HOSTILE,
    place=HOSTILE,
)
PLAN = resolve(TrainingRequest(), BASES["demo"], inspection("demo").dataset, LAPTOP)
HOSTILE_PLAN = PLAN.model_copy(
    update={"dataset": PLAN.dataset.model_copy(update={"id": HOSTILE}), "columns": {"a": HOSTILE}}
)
_CURVE = fold(Metric(step=i, total_steps=2, values={"loss": 1.0, "eval_loss": 1.0}) for i in (1, 2))
COMPARED = [
    render_changes.ComparedRun(HOSTILE, PLAN, _CURVE),
    render_changes.ComparedRun(HOSTILE, HOSTILE_PLAN, _CURVE),
]
SAMPLE = Sample(step=1, prompt=HOSTILE, expected=HOSTILE, text=HOSTILE)


@pytest.mark.parametrize(
    "markup",
    [
        render.notice("error", HOSTILE, HOSTILE),
        render.error_notice(DatasetError(HOSTILE, HOSTILE)),
        render.table([HOSTILE], [[HOSTILE]], HOSTILE),
        render.account_chip(HOSTILE),
        render.facts([(HOSTILE, HOSTILE)]),
        render_data.preview(inspection("hostile")),
        render_data.findings(inspection("broken").problems),
        render_data.format_line(inspection("hostile")),
        render_data.findings([_MAPPED]),
        render_xray.xray((_HOSTILE_ROW,), (_HOSTILE_ROW, _HOSTILE_ROW)),
        render_plan.command(HOSTILE),
        render_samples.samples(RunView(samples=(SAMPLE,)), 1),
        render_run.log([Note(level="info", text=HOSTILE)]),
        render_run.failure(Failed(cause=HOSTILE, hint=HOSTILE, line=HOSTILE)),
        render_changes.fork(HOSTILE, "0" * 32, PLAN, HOSTILE_PLAN),
        render_changes.overlay(COMPARED, ["log"]),
        prompt_chips([Question(prompt=HOSTILE), Question(prompt=f'"{HOSTILE}')]),
    ],
)
def test_hostile_text_is_escaped_everywhere(markup: str) -> None:
    assert "<img" not in markup
    assert "&lt;img" in markup


def test_what_is_trained_is_marked_token_by_token() -> None:
    markup = render_xray.xray(inspection("demo").samples)
    assert '<b>In the attic.</b><b class="special">&lt;|im_end|&gt;</b>' in markup
    assert "<i>user<s>↵</s>\n" in markup
    assert "Row 1: 21 tokens, 4 learned" in markup


def test_the_card_says_what_it_takes_and_why(actions: FakeActions) -> None:
    actions.machine = GPU
    plan = actions.plan(TrainingRequest(base="Qwen/Qwen3-8B", dataset="warned"))
    card = render_plan.card(plan, LABELS, "python -m qlora_space train")
    assert "1,000 rows" in card
    assert "27 % of the tokens" in card
    assert "121 GiB free on NVIDIA H200" in card
    assert "$" in card
    for choice in plan.choices:
        assert render.text(choice.why) in card


def test_the_card_of_a_base_by_its_size_says_the_bits_and_what_it_takes() -> None:
    card = render_plan.card(within(7.5), LABELS, "python -m qlora_space train")
    assert "2.69 bit<" in card
    assert "<b>2.69</b><em>the base then takes 7.49 of 7.5 GiB</em>" in card


def counted_rows(is_exact: bool, held_out: int) -> RowCounts:
    return RowCounts(
        is_exact=is_exact, max_length=512, rows=870, tokens=9000, packed_rows=20,
        eval_fraction=0, most_held_out=held_out, held_out_rows=held_out,
        held_out_documents=held_out,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("is_exact", "held_out", "eval_split", "words"),
    [
        (True, 0, "", "none"),
        (True, 90, "", "90 rows"),
        (False, 90, "", "about 90 rows"),
        (True, 1, "validation", "1 row of validation"),
        (True, 0, "validation", "none"),
    ],
)
def test_what_is_held_out_is_a_number_on_the_card_and_among_the_facts(
    is_exact: bool, held_out: int, eval_split: str, words: str
) -> None:
    found = inspection("demo")
    data = found.dataset.model_copy(update={"counts": counted_rows(is_exact, held_out)})
    request = TrainingRequest(eval_fraction=0.0 if not held_out else None)
    plan = resolve(request, BASES["demo"], data, LAPTOP, eval_split=eval_split)
    facts = render_data.dataset_facts(
        found.model_copy(update={"dataset": data, "eval_split": eval_split})
    )
    assert f"<span>Held out</span> {words}</li>" in facts
    card = render_plan.summary(plan)
    assert f"<dd>{words.split(' of ')[0]}</dd>" in card
    steps = f"{'' if is_exact else 'about '}{plan.estimate.steps} steps, 3 epochs"
    assert f"<dd>{steps}</dd>" in card


def test_steps_that_are_asked_for_are_no_estimate() -> None:
    plan = resolve(TrainingRequest(max_steps=7), BASES["demo"], inspection("demo").dataset, LAPTOP)
    assert "<dd>7 steps</dd>" in render_plan.summary(plan)
    assert "about" in render_plan.summary(plan)


def test_no_price_where_it_costs_nothing(actions: FakeActions) -> None:
    assert "Price" not in render_plan.summary(actions.plan(TrainingRequest()))


def test_the_card_of_several_gpus_says_so(actions: FakeActions) -> None:
    plan = actions.plan(TrainingRequest())
    card = render_plan.card(plan, {}, "")
    assert "share every step" not in card
    shared = plan.model_copy(update={"num_processes": 2, "hardware": GPU})
    card = render_plan.card(shared, {}, "")
    assert "2 share every step" in card
    assert "free on each NVIDIA H200" in card


def test_the_card_says_what_the_fast_step_keeps_and_what_it_needs() -> None:
    request = TrainingRequest(max_length=2048, per_device_train_batch_size=2)
    plan = resolve(request, QWEN3_8B, rows(), gpu(121))
    most, least = gib(plan.estimate.peak_gib), gib(plan.estimate.least_gib)
    bar = render_plan.memory_bar(plan)
    assert f"{most} of 121 GiB free on NVIDIA H200; needs at least {least}" in bar
    assert "Kept for speed, given back where memory is short" in bar
    assert f"{most} of 121 GiB, at least {least}" in render_plan.glance(plan)
    plain = resolve(TrainingRequest(bits=8), QWEN3_8B, rows(), gpu(121))
    assert "at least" not in render_plan.memory_bar(plain) + render_plan.glance(plain)


def test_a_plan_that_does_not_fit_says_so(actions: FakeActions) -> None:
    plan = actions.plan(TrainingRequest(base="Qwen/Qwen3-235B"))
    assert "Does not fit" in render_plan.memory_bar(plan)


@pytest.mark.parametrize("ending", ["finished", "failed", "cancelled", "paused"])
def test_progress_is_shown_at_every_moment_of_a_run(actions: FakeActions, ending: str) -> None:
    plan = actions.plan(TrainingRequest())
    view = RunView()
    assert "Waiting for the worker" in render_run.head("Mine", plan, view)
    starting = fold([Started(place="CPU", pid=1, pid_start_time=0.0)])
    assert "Getting ready" in render_run.head("Mine", plan, starting)
    for event in script(30, ending, 12):
        view = fold([event.model_copy(update={"time": time.time()})], view)
        head = render_run.head("Mine", plan, view)
        assert "None" not in head
        assert "nan" not in head
    assert render.status_chip(view) in head


def test_a_mixed_base_is_called_by_its_average_and_what_is_done_to_it_by_its_name(
    actions: FakeActions,
) -> None:
    plan = actions.plan(TrainingRequest(mean_bits=2.5))
    assert "2.5 bit" in render_plan.summary(plan)
    calibrated = actions.plan(TrainingRequest(bits=4, calibrated=True))
    assert "4 bit (calibrated)" in render_plan.summary(calibrated)
    view = fold([Started(place="CPU", pid=1, pid_start_time=0.0)])
    loading = render_run.head("Mine", plan, fold([Phase(name="model", done=0, total=1)], view))
    assert "at 2.5 bit on" in loading
    assert "Loading the base" in loading
    quantizing = render_run.head("Mine", plan, fold([Phase(name="model", done=3, total=6)], view))
    assert "Quantizing the base" in quantizing
    assert "3 of 6 layers" in quantizing
    assert "Quantizing the base" in render_run.log([Phase(name="model", done=0, total=6)])


def test_a_silent_run_is_never_called_running(actions: FakeActions) -> None:
    plan, long_ago = actions.plan(TrainingRequest()), time.time() - 50
    view = fold(e.model_copy(update={"time": long_ago}) for e in script(30, "", 12))
    head = render_run.head("Mine", plan, view)
    assert "Stalled" in head
    assert "Training</span>" not in head
    view = fold([Failed(cause="x", hint="y", time=long_ago)], view)
    assert "Failed" in render.status_chip(view)


def test_a_run_that_is_over_says_once_how_long_it_took_without_waiting(
    actions: FakeActions,
) -> None:
    plan, at = actions.plan(TrainingRequest()), 1_000_000.0
    ends = [
        Started(place="here", pid=1, pid_start_time=0.0, time=at),
        Phase(name="queue", done=0, total=1, time=at),
        Phase(name="data", done=0, total=1, time=at + 3600),
        Finished(step=30, time=at + 3600 + 300),
    ]
    head = render_run.head("Mine", plan, fold(ends))
    assert head.count("5 min") == 2, "in the line of the progress and in the tile"
    assert "took 5 min" in head
    assert "last attempt took 5 min" in render_run.head("Mine", plan, fold([*ends[:2], *ends]))
    result = render_run.result(finished_report())
    assert "Training steps took" in result
    assert "Took" not in result


def test_a_queued_run_shows_its_queue_position_and_when_it_starts(actions: FakeActions) -> None:
    view = fold([Started(place="here", pid=1, pid_start_time=0.0, time=time.time())])
    view = fold([Phase(name="queue", done=0, total=2, time=time.time())], view)
    head = render_run.head("Mine", actions.plan(TrainingRequest()), view, QueuePosition(2, 600))
    assert "Waiting for 2 runs before it" in head
    assert "starts in about 10 min" in head


@pytest.mark.parametrize(
    ("change", "outcome"),
    [((-2.98, -3.1, -2.8), "better"), ((0.2, 0.1, 0.3), "worse"), ((-0.1, -0.3, 0.1), "unclear")],
)
def test_the_result_is_green_only_when_the_change_is_outside_its_interval(
    change: tuple[float, float, float], outcome: str
) -> None:
    values = dict(zip(("change", "low", "high"), change, strict=True))
    report = finished_report().model_copy(update={"heldout_change": LossChange(**values)})
    markup = render_run.result(report)
    assert f"result-{outcome}" in markup
    assert ("icon-done" in markup) == (outcome == "better")


def test_every_line_before_and_after_has_its_interval_and_its_rows() -> None:
    rows = (0.0,) * 30 + (1.0,) * 10
    up = ScoreChange(change=0.5, low=0.301, high=0.66)
    right = Measure(name="number", base=rows, trained=(0.0, 1.0) * 20, change=up)
    markup = render_run.result(finished_report().model_copy(update={"measures": (right,)}))
    assert "<td>−3.11 to −2.84, 100 rows</td>" in markup
    assert "<td>+30 to +66 points, 40 rows</td>" in markup
    assert "Held-out perplexity" in markup
    assert "Exact answers" not in markup, "these measures have none"
    assert "General questions" not in markup
    forgotten = finished_report().model_copy(update={"forgetting": (right,)})
    assert "<td>10 of 40</td><td>20 of 40</td>" in render_run.result(forgotten)
    assert "Exact answers" in render_run.result(finished_report())


def test_a_general_loss_that_got_worse_is_a_warning_in_words() -> None:
    markup = render_run.result(finished_report())
    assert "notice-warning" in markup
    assert "Worse on other text: general loss 1.42 → 1.51, 6 % higher." in markup


def test_a_report_without_measurements_is_not_a_crash() -> None:
    report = Report(
        scores=(),
        num_eval_rows=0,
        num_exact_match_rows=0,
        steps=1,
        trained_tokens=1,
        train_seconds=1,
        total_seconds=1,
        tokens_per_second=1,
        peak_gib=1,
        adapter_sha256="0",
    )
    assert "No rows were held out" in render_run.result(report)


def test_the_device_is_shown_with_its_free_memory() -> None:
    assert "22 GiB of 23 GiB free" in render.device_chip(LAPTOP)
    several = render.device_chip(GPU.model_copy(update={"num_gpus": 2}))
    assert "2 x NVIDIA H200" in several
    assert "free each" in several


def test_what_is_cut_off_has_its_own_style_and_its_count() -> None:
    markup = render_xray.xray((_HOSTILE_ROW,))
    assert "Row 1: 3 tokens, 1 learned" in markup
    assert "data-cut>1 cut off" in markup
    assert markup.count("<del>&lt;img") == 1
    assert "Cut here. Never seen: 1 token" in markup


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\n", "a<s>↵</s>\n"),
        (" a", " a"),
        ("  a", "<s>··</s>a"),
        ("a ", "a<s>·</s>"),
        ("\t\u202e\u200b", "<s>⇥ </s><s>U+202E</s><s>U+200B</s>"),
        ("\U000e0041😀", "<s>U+E0041</s>😀"),
    ],
)
def test_invisible_characters_have_a_sign(value: str, shown: str) -> None:
    row = SampleRow(tokens=(Token(id=7, text=value, trained=True),), truncated=False)
    markup = render_xray.xray((row,))
    assert f"<b>{shown}</b>" in markup
    plain = shown.replace("<s>", "").replace("</s>", "")
    assert f'data-tokens="7:{len(plain.encode("utf-16-le")) // 2}"' in markup


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_length", "1024", "Set longest example to 1,024 tokens"),
        ("eval_fraction", "0.1", "Hold out 10 % of the training rows instead"),
        ("deduplicate", "true", "Train on each row once"),
        ("drop_truncated", "true", "Leave these rows out"),
        ("format", "", "Detect the format again"),
        ("columns", "prompt=a,completion=b", "Use “a” as prompt, “b” as completion"),
        ("num_train_epochs", "10", "Set epochs to 10"),
    ],
)
def test_a_button_says_what_it_does(field: str, value: str, words: str) -> None:
    assert render_data.fix_label(Change(field=field, value=value)) == words  # type: ignore[arg-type]


def test_every_phase_has_its_words() -> None:
    for name in get_args(Phase.model_fields["name"].annotation):
        assert render_run.log([Phase(name=name, done=0, total=1)])


def test_the_gate_is_green_or_red_in_words_with_every_quality_point() -> None:
    green, red = (render_low_bit.gate(gate(is_broken=broken)) for broken in (False, True))
    assert "Degraded, not broken: the base at 2 bit" in green
    assert "gate-green" in green
    assert "Broken: the base at 2 bit" in red
    assert "gate-red" in red
    close = gate(is_broken=False).model_copy(update={"why": "At 4 bits this base is close to it."})
    assert "Close to its original: the base at 2 bit" in render_low_bit.gate(close)
    for words in ("16 bit, the original", "2 bit, EoRA repair", "56.4", "42.1", "59 %"):
        assert words in green


def as_large_as_smollm2(plan: Plan) -> Plan:
    like = {"model_type": "llama", "parameters": 134_515_008}
    return plan.model_copy(update={"base": plan.base.model_copy(update=like)})


def test_nothing_is_expected_of_a_base_of_another_size_than_was_measured(
    actions: FakeActions,
) -> None:
    plan = actions.plan(TrainingRequest(bits=2))
    shown = render_low_bit.bit_widths(TrainingRequest(bits=2), plan, [TWO_BITS])
    assert "SmolLM2" not in shown


def test_mixed_and_healed_bits_have_a_row_of_their_own_and_are_not_the_plain_width(
    actions: FakeActions,
) -> None:
    plan = actions.plan(TrainingRequest(bits=2))
    for changed, name in (({"mean_bits": 2.9}, "2.9 bit, mixed"), ({"heal": True}, "heal")):
        other = TWO_BITS.model_copy(update=changed)
        assert render_low_bit.same_words(plan, [other])[2] == "–"
        shown = render_low_bit.bit_widths(TrainingRequest(bits=2), plan, [other])
        assert name in shown
        assert "59 %" in shown


def test_every_bit_width_has_its_memory_and_its_quality_where_measured(
    actions: FakeActions,
) -> None:
    request = TrainingRequest(bits=2)
    plan = as_large_as_smollm2(actions.plan(request))
    found = render_low_bit.bit_widths(request, plan, [TWO_BITS])
    assert "<td>42.1</td><td>30.8</td><td>59 %</td>" in found  # beside its own 16-bit base
    assert "<details" in found
    assert " open>" in found
    for words in (
        "2 bit, EoRA repair, rank 32, groups of 64",
        "42.1",
        "59 %",
        "30.8",
        "2.28",
        "3 bit, EoRA repair",
        "<td>4 bit (NF4)</td><td>4.13</td>",
        "<td>4 bit, calibrated</td><td>4.31</td>",
        "Made in about",
    ):
        assert words in found
    assert found.count("<td>–</td>") == 11  # of 8 bits all three, of the other unmeasured ways two
    assert found.count("<td>about ") == 3
    assert "as on SmolLM2-135M-Instruct, not on this base" in found
    assert found.count("<td>as it loads</td>") == 3
    assert "closer to 16 bit than NF4" not in found
    assert " open>" not in render_low_bit.bit_widths(
        request, plan.model_copy(update={"bits": 8}), []
    )


def test_the_ladder_shows_each_width_by_size_and_quality_and_says_what_was_measured_elsewhere(
    actions: FakeActions,
) -> None:
    plan = as_large_as_smollm2(actions.plan(TrainingRequest(bits=2)))
    found = render_low_bit.bit_widths(TrainingRequest(bits=2), plan, [TWO_BITS])
    steps = re.findall(r'<li class="([a-z ]+)" style="left:([\d.]+)%;bottom:([\d.]+)%">', found)
    across = [float(left) for _, left, _ in steps]
    assert across == sorted(across)
    assert [kind for kind, _, _ in steps] == ["right here", "left", "below", "left"]
    assert all(0 <= float(bottom) <= 100 for _, _, bottom in steps)
    assert ">2 bit: 59 %<" in found
    assert ">4 bit, calibrated: ≈ 85 %<" in found
    shown = render_low_bit.same_words(plan, [TWO_BITS])
    assert shown == {16: "100 %", 8: "–", 4: "≈ 72 %", 3: "≈ 75 %", 2: "59 %"}


def test_nothing_is_expected_of_a_mixture_or_of_what_is_packed_already(
    actions: FakeActions,
) -> None:
    plan = actions.plan(TrainingRequest(bits=2))
    mixture = {"num_experts": 8, "experts_per_token": 2, "expert_intermediate_size": 64}
    for changed in (mixture, {"quantization": "gptq", "quantized_bits": 4}):
        other = plan.model_copy(update={"base": plan.base.model_copy(update=changed)})
        shown = render_low_bit.bit_widths(TrainingRequest(bits=2), other, [])
        assert "about " not in shown.replace("Made in about", "")
        assert "ladder" not in shown
        assert set(render_low_bit.same_words(other, []).values()) == {"100 %", "–"}


def test_the_narrowest_width_that_is_closer_to_the_original_than_nf4_is_named(
    actions: FakeActions,
) -> None:
    def at(bits: int, kl: float, **more: Any) -> Quality:
        points = (TWO_BITS.points[0], TWO_BITS.points[-1].model_copy(update={"kl": kl}))
        stored = {2: 2.281, 3: 3.297, 4: 4.312}[bits] if more else 4.127
        base = {"bits": bits, "init": "zero", "points": points, "bits_per_weight": stored}
        return TWO_BITS.model_copy(update=base | more)

    request = TrainingRequest(base="Qwen/Qwen3-8B", bits=3)
    plan = actions.plan(TrainingRequest(bits=3)).model_copy(update={"base": QWEN3_8B})
    repaired = {"init": "eora", "calibrated": True}
    known = [
        at(4, 0.292),
        at(4, 0.079, calibrated=True),
        at(3, 0.263, **repaired),
        at(2, 1.28, **repaired),
    ]
    shown = render_low_bit.bit_widths(request, plan, known)
    named = "3 bit, calibrated, EoRA repair, rank 32, groups of 64, is closer to 16 bit than NF4"
    assert f"{named} (KL 0.263 and 0.292) and 0.67 GiB smaller." in shown
    shown = render_low_bit.bit_widths(request, plan, known[:2])
    assert "4 bit, calibrated, no repair, rank 32, groups of 64, is closer" in shown
    assert "GiB larger" in shown or "MiB larger" in shown
    elsewhere = (known[0].points[0].model_copy(update={"ppl": 12.3}), known[0].points[1])
    other_text = [known[0].model_copy(update={"points": elsewhere}), *known[1:]]
    assert "closer" not in render_low_bit.bit_widths(request, plan, other_text)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"packing": False, "r": 8},
        {"max_length": 4096, "group_size": 128},
        {"calibrated": True},
    ],
)
@pytest.mark.parametrize("machine", [gpu(120), gpu(22), gpu(5), LAPTOP], ids=lambda m: m.name)
def test_the_memory_of_a_width_is_that_on_the_card_once_it_is_chosen(
    machine: Hardware, asked: dict
) -> None:
    machine = machine.model_copy(update={"host_free_gib": 64})
    data, found = rows(900, 700), []
    for chosen in (16, 8, 4, 3, 2):
        repaired = asked if chosen <= 4 else {**asked, "calibrated": None}
        request = TrainingRequest(bits=chosen, **repaired)  # type: ignore[arg-type]
        plan = resolve(request, QWEN3_8B, data, machine)
        request = request.model_copy(update=asked)
        peaks = render_low_bit.needed_gib(request, plan)
        assert peaks[chosen] == plan.estimate.least_gib
        found.append(peaks)
    assert all(peaks == found[0] for peaks in found)


def test_a_width_that_cannot_work_has_a_dash() -> None:
    narrow = QWEN3_8B.model_copy(update={"intermediate_size": 12288 + 32})
    request = TrainingRequest()
    plan = resolve(request, narrow, rows(), gpu(120))
    peaks = render_low_bit.needed_gib(request, plan)
    assert peaks[3] is None
    assert render_low_bit.shown_gib(peaks[3]) == "–"
    assert peaks[4] == plan.estimate.least_gib


def test_only_what_differs_is_in_the_table_with_a_column_for_each_run() -> None:
    markup = render_changes.overlay(
        [
            render_changes.ComparedRun("A", PLAN, _CURVE),
            render_changes.ComparedRun(
                "A", PLAN.model_copy(update={"r": 8, "packing": False}), _CURVE
            ),
        ],
        [],
    )
    assert "<td>Rank (r)</td><td>16</td><td>8</td>" in markup
    assert "<td>on</td><td>off</td>" in markup
    assert markup.count("<tr><td>") == 2
    assert '<th scope="col">A (2)</th>' in markup


def test_the_bases_facts_say_what_is_special() -> None:
    from tests.app.ui.fake import BASES

    mixture = BASES["Qwen/Qwen3-30B-A3B"]
    shown = render_data.base_facts(mixture)
    assert "30B, a mixture of experts with 3.3B active for a token" in shown
    assert "Stored as" not in shown
    packed = mixture.model_copy(update={"expert_bits": 4.25})
    assert "MXFP4: experts keep their 4-bit values" in render_data.base_facts(packed)
    packed = mixture.model_copy(update={"quantization": "gptq", "quantized_bits": 3})
    assert "gptq, 3 bits: kept as it is" in render_data.base_facts(packed)
    shown = render_data.base_facts(BASES["Qwen/Qwen3.5-9B"])
    assert "images and sound, 450M weights" in shown
    assert "Gated DeltaNet: not packed" in shown


def test_the_bases_facts_say_whether_a_gpu_trains_it_the_fast_way() -> None:
    from tests.plan.test_resolve import QWEN3_8B

    assert "fast on a GPU" in render_data.base_facts(QWEN3_8B)
    assert "Stays out" not in render_data.base_facts(QWEN3_8B)
    special = {
        "architecture": "Qwen3_5ForConditionalGeneration", "left_out_parameters": 456_000_000,
        "state_carried": "Gated DeltaNet", "read_as": "FP8",
    }  # fmt: skip
    page = render_data.base_facts(QWEN3_8B.model_copy(update=special))
    for words in ("images and sound, 456M weights", "Gated DeltaNet: not packed", "FP8: quantized"):
        assert words in page
    unknown = QWEN3_8B.model_copy(update={"model_type": "x", "architecture": HOSTILE})
    shown = render_data.base_facts(unknown)
    assert "plain: " in shown
    assert "is not among those it knows" in shown
    assert HOSTILE not in shown


def test_a_run_that_trains_an_adapter_further_says_so_and_not_by_its_id() -> None:
    further = PLAN.model_copy(update={"adapter": "a" * 32})
    words = render_changes.fork("Tea", "a" * 32, PLAN, further)
    assert "Trains the adapter of “Tea”, with the same settings." in words
    other = render_changes.fork("Tea", "b" * 32, PLAN, further)
    assert "Made from “Tea”." in other
    assert "a" * 32 in other
