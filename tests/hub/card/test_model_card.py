"""The card describes the adapter completely, and untrusted text cannot change its structure."""

import math
import re

import pytest
import yaml

from qlora_space.core.errors import RequestError
from qlora_space.core.events import QualityPoint
from qlora_space.core.facts import DatasetFacts, ModelFacts
from qlora_space.core.request import TrainingRequest
from qlora_space.hub import model_card
from qlora_space.hub.card.escape import block, inline
from qlora_space.hub.card.model_card import AtStep
from qlora_space.runs.report import Answer, LossChange, Measure, Report, ScoreChange, Scores
from tests.hub.conftest import dataset_of, model_of, plan_of, report_of

LOSSES = [(step, 3.0 / step) for step in range(1, 61)]
HOSTILE = (
    "a|b",
    "x\n\n# Heading\n\n| new | row |",
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "![i](http://evil/x.png)",
    "[click](javascript:alert(1))",
    "see http://evil/login or www.evil.com or me@evil.com",
    "```\n</details>\n# out\n```",
    "````text\nout",
    "$$x$$ \\(y\\)",
    "\u202eevil\u202c \u0007 \x1b[31m",
    "---\nlicense: evil\n---",
)


def card_of(
    base: ModelFacts | None = None,
    dataset: DatasetFacts | None = None,
    report: Report | None = None,
    **fields: object,
) -> str:
    values = {"base": "alice/base", "dataset": "alice/data"} | fields
    request = TrainingRequest.model_validate(values)
    plan = plan_of(request, base, dataset)
    return model_card(plan, report or report_of(), request, LOSSES, "alice/new")


def front_matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_front_matter_is_what_the_hub_reads() -> None:
    found = front_matter(card_of())
    assert found.pop("model-index")
    assert found == {
        "base_model": "alice/base",
        "base_model_relation": "adapter",
        "datasets": ["alice/data"],
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["qlora", "peft", "lora", "qlora-space"],
    }


def test_held_out_results_are_in_the_metadata_as_the_hub_reads_them() -> None:
    right = Measure(name="number", base=(0.0, 0.0), trained=(1.0, 0.0))
    card = card_of(report=report_of(measures=(right,)))
    (index,) = front_matter(card)["model-index"]  # type: ignore[misc]
    (result,) = index["results"]
    assert result["task"] == {"type": "text-generation"}
    assert result["dataset"]["type"] == "alice/data"
    assert result["dataset"]["revision"] == "b" * 40
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [("loss", 0.5), ("number", 0.5)]
    assert "model-index" not in front_matter(card_of(dataset=dataset_of(is_public=False)))
    assert "model-index" not in front_matter(card_of(report=report_of(scores=())))


def test_what_was_not_measured_on_the_published_adapter_is_no_result_of_it() -> None:
    request = TrainingRequest(base="alice/base", dataset="alice/data")
    for variant in ({"checkpoint": AtStep(20, 0.7)}, {"for_16_bit": True}):
        card = model_card(plan_of(request), report_of(), request, LOSSES, "a/b", **variant)  # type: ignore[arg-type]
        assert "model-index" not in front_matter(card)
    assert "checkpoint after step 20 (held-out loss 0.7 nats" in model_card(
        plan_of(request), report_of(), request, LOSSES, "a/b", checkpoint=AtStep(20, 0.7)
    )


def test_a_chart_that_is_published_takes_the_place_of_the_line_of_bars() -> None:
    request = TrainingRequest(base="alice/base", dataset="alice/data")
    card = model_card(plan_of(request), None, request, LOSSES, "a/b", has_chart=True)
    assert "![Training and held-out loss by step](loss.png)" in card
    assert "▁" not in card
    assert "▁" in card_of()


def test_demo_and_local_sources_claim_no_hub_id_and_show_no_path() -> None:
    secret = "/home/alice/secret project"
    local = model_of("local", id=f"{secret}/model")
    file = dataset_of(id=f"{secret}/rows.jsonl", sha="d" * 64)
    request = TrainingRequest(base=local.id, dataset=file.id, name="mine")
    card = model_card(plan_of(request, local, file), report_of(), request, LOSSES, "alice/new")
    assert not {"base_model", "datasets"} & set(front_matter(card))
    assert "secret" not in card
    assert "rows.jsonl" in card
    demo = card_of(base=model_of("demo", license=""), dataset=dataset_of(id="demo", sha="x"))
    assert "the demo base" in demo
    assert "license" not in front_matter(demo)


def test_every_score_has_its_rows_and_the_interval_of_its_change() -> None:
    rows = (0.0,) * 30 + (1.0,) * 10
    up = ScoreChange(change=0.5, low=0.301, high=0.66)
    right = Measure(name="number", base=rows, trained=(0.0, 1.0) * 20, change=up)
    few = Measure(name="f1", base=(0.5,), trained=(0.25,))
    change = LossChange(change=-2.0, low=-2.5, high=-1.5)
    general = right.model_copy(update={"name": "general"})
    found = {"measures": (right, few), "heldout_change": change, "forgetting": (general,)}
    card = card_of(report=report_of().model_copy(update=found))
    assert "| All general questions | 25.0% | 50.0% | 40 | +30 to +66 points |" in card
    assert "| Right number | 25.0% | 50.0% | 40 | +30 to +66 points |" in card
    assert " | 50.0% | 25.0% | 1 | not enough rows |" in card
    assert "95 % interval of the change of the loss, rows paired: -2.5 to -1.5." in card


def test_figures_settings_and_versions_are_all_there() -> None:
    card = card_of()
    assert "| base | 2.5 | 12.18 | 5.0% | 1.5 |" in card
    assert "| trained | 0.5 | 1.649 | 90.0% | 1.6 |" in card
    for setting in ("learning_rate", "lora_alpha", "max_length", "seed", "optim", "bits"):
        assert f"| {setting} |" in card
    assert "| peft | 0.21.2 |" in card
    assert "12,345 tokens" in card
    assert "c" * 64 in card
    assert "20 tokens (median), 99 (longest)" in card


def test_what_the_adapter_is_on_and_its_scale_are_stated() -> None:
    card = card_of()
    assert "| LoRA | target_modules | all-linear | layers adapted |" in card
    assert "use_rslora" not in card
    card = card_of(target_modules="mlp", use_rslora=True, use_dora=True, r=16)
    assert "| LoRA | target_modules | mlp | layers adapted |" in card
    assert "| LoRA | lora_alpha | 16 | scale 4 |" in card
    assert "| LoRA | use_rslora | yes |" in card
    assert "| LoRA | use_dora | yes |" in card


def test_the_loss_is_a_line_and_ten_points_with_first_and_last() -> None:
    card = card_of()
    section = card.split("## Training loss")[1].split("##")[0]
    rows = re.findall(r"^\| (\d+) \| ", section, re.M)
    assert len(rows) == 10
    assert (rows[0], rows[-1]) == ("1", "60")
    spark = re.search("`([▁-█]+)`", section)
    assert spark
    assert (spark[1][0], spark[1][-1], len(spark[1])) == ("█", "▁", 40)


@pytest.mark.parametrize("metrics", [[], [(1, 2.0)], [(1, math.nan), (2, math.inf)]])
def test_no_curve_is_better_than_a_false_one(metrics: list[tuple[int, float]]) -> None:
    request = TrainingRequest()
    card = model_card(plan_of(request), report_of(), request, metrics, "alice/new")
    assert "Training loss" not in card


def test_a_flat_loss_and_a_score_that_was_not_measured_are_shown() -> None:
    request = TrainingRequest()
    report = report_of(scores=(Scores(name="base"), Scores(name="trained", heldout_loss=1e9)))
    card = model_card(plan_of(request), report, request, [(1, 2.0), (2, 2.0)], "alice/new")
    assert "not measured" in card
    without = model_card(plan_of(request), None, request, [], "alice/new")
    assert "No figures were measured" in without


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(4, "load_in_4bit=True"), (8, "load_in_8bit=True"), (16, 'dtype="bfloat16"')],
)
def test_the_code_to_load_it_is_python_with_the_same_bits(bits: int, expected: str) -> None:
    code = card_of(bits=bits).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert expected in code
    assert f'"alice/base", revision="{"a" * 40}"' in code
    assert ("BitsAndBytesConfig" in code) == (bits < 16)


def test_a_base_that_caps_its_attention_is_loaded_with_the_cap() -> None:
    request = TrainingRequest()
    plan = plan_of(request)
    eager = plan.base.model_copy(update={"eager_attention": True})
    cards = [
        model_card(plan.model_copy(update={"base": base}), report_of(), request, [], "alice/new")
        for base in (plan.base, eager)
    ]
    assert ['attn_implementation="eager"' in card for card in cards] == [False, True]


def test_a_run_that_was_stopped_by_hand_says_so() -> None:
    assert "stopped by hand after 60 steps" in card_of(report=report_of(stopped_by_hand=True))


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_stays_text_everywhere(text: str) -> None:
    answer = Answer(prompt=text, expected=text, base=text, adapted=text)
    report = report_of(
        answers=(answer,),
        versions={text: text},
        scores=(Scores(name=text, heldout_loss=1.0),),
    )
    dataset = dataset_of(id=text, config=text, split=text, format=text, license=text, sha=text)
    base = model_of("local", id=text, license=text, architecture=text)
    card = card_of(base=base, dataset=dataset, report=report, name=text[:80])
    calm = card_of(
        base=model_of("local", id="x", license="x"),
        dataset=dataset_of(id="x", config="x", split="x", format="x", license="x", sha="x"),
        report=report_of(
            answers=(Answer(prompt="x", expected="x", base="x", adapted="x"),),
            versions={"x": "x"},
            scores=(Scores(name="x", heldout_loss=1.0),),
        ),
        name="x",
    )
    assert "license" not in front_matter(card)
    assert outline(card) == outline(calm)


def outline(card: str) -> list[str]:
    """What a markdown renderer makes structure of: headings, table rows, links and HTML."""
    body = card.split("---\n", 2)[2] if card.startswith("---\n") else card
    found, fence = [], ""
    for line in body.split("\n"):
        opened = re.match(r"`{3,}", line)
        if fence:
            if line.strip() == fence:
                fence = ""
            continue
        if opened:
            fence = opened[0]
            found.append("code")
        elif line.startswith("#"):
            found.append(line[: line.index(" ")])
        elif line.startswith("|"):
            found.append(f"row of {line.count('|') - 1}")
        found += re.findall(r"<\w|\]\(|https?://|www\.|@|\$", line)
    return found


def test_control_and_direction_characters_are_removed_and_long_text_is_cut() -> None:
    assert inline("a\u202eb\x1b[0m\tc\u200b") == "ab&#91;0m c"
    assert len(inline("x" * 10_000)) == 300
    assert block("a````b").startswith("`````text\n")


@pytest.mark.parametrize("repo", ["a b", 'x"); import os', "a/b/c", "../x"])
def test_only_a_repositorys_name_goes_into_the_code(repo: str) -> None:
    request = TrainingRequest()
    with pytest.raises(RequestError):
        model_card(plan_of(request), None, request, [], repo)


def low_bit_card(*, for_16_bit: bool = False, with_base: bool = False, **more: float) -> str:
    request = TrainingRequest.model_validate(
        {"base": "alice/base", "dataset": "alice/data", "bits": 2, "group_size": 32} | more
    )
    points = (
        QualityPoint(name="16 bit", ppl=30.8, kl=0, top1=1),
        QualityPoint(name="quantized", ppl=56.4, kl=0.878, top1=0.504),
        QualityPoint(name="start", ppl=42.1, kl=0.557, top1=0.594),
    )
    report = report_of().model_copy(update={"gate": points})
    kind = {"for_16_bit": for_16_bit, "with_base": with_base}
    return model_card(plan_of(request), report, request, LOSSES, "alice/new", **kind)


def test_an_adapter_of_a_low_bit_base_comes_with_the_recipe_of_that_base() -> None:
    card = low_bit_card()
    assert "from qlora_space.lowbit import load_quantized" in card
    assert 'load_quantized("alice/base", revision="' in card
    assert "bits=2, group_size=32)" in card
    assert 'PeftModel.from_pretrained(base, "alice/new")' in card
    assert "| 2 bit, eora initialization | 42.1 | 0.557 | 59% |" in card
    assert "| LoRA | init | eora | initial weights of the adapter |" in card


def test_published_with_its_packed_base_the_card_loads_both_from_one_repository() -> None:
    card = low_bit_card(with_base=True, mean_bits=2.5, calibrated=True)
    assert 'base = load_packed("alice/new")' in card
    assert "load_quantized" not in card
    assert "is in `base/`, packed to about 3.08 bits a weight" in card
    assert "licence of the base applies" in card
    assert "| base | mean_bits | 2.5 | mixed |" in card


def test_exported_for_the_16_bit_base_it_loads_without_qlora_space() -> None:
    card = low_bit_card(for_16_bit=True)
    assert "load_quantized" not in card
    assert 'dtype="bfloat16"' in card
    assert "the repair of the low-bit base that it was initialized with is taken out" in card
    assert "doubles the rank" in card
    assert "measured on the low-bit base" in card
    assert "sha256" not in card
    assert "sha256 of its tensors" in low_bit_card()


@pytest.mark.parametrize(("is_public", "shown"), [(True, True), (False, False)])
def test_rows_of_a_dataset_that_not_everybody_may_read_never_enter_the_card(
    is_public: bool, shown: bool
) -> None:
    row = "the heron stands at dawn"
    answer = Answer(prompt=row, expected=row, base=row, adapted=row)
    card = card_of(report=report_of(answers=(answer,)), dataset=dataset_of(is_public=is_public))
    assert (row in card) is shown
