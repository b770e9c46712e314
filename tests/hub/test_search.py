"""Suggestions: typed, few, and never an error."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from qlora_space.hub import DatasetHit, ModelHit, model_facts, search_datasets, search_models
from tests.fake_hub import ALICE, FakeHub


def test_models_come_with_size_and_gate_most_used_first(hub: FakeHub, tiny_base: Path) -> None:
    hub.add_model("alice/tiny-a", tiny_base, gated=True).downloads = 5
    hub.add_model("alice/tiny-b", {"README.md": "x"}).downloads = 7
    assert [asdict(hit) for hit in search_models("tiny", None)] == [
        asdict(ModelHit("alice/tiny-b", 7, None, False)),
        asdict(
            ModelHit("alice/tiny-a", 5, model_facts(str(tiny_base), None, None).parameters, True)
        ),
    ]


def test_datasets_come_with_their_size_tag(hub: FakeHub) -> None:
    card = "---\ntags:\n- size_categories:1K<n<10K\n---\n"
    hub.add_dataset("alice/data", {"README.md": card})
    assert search_datasets("DATA", None) == [DatasetHit("alice/data", 0, "1K<n<10K", False)]


def test_no_more_than_twelve_come_and_private_ones_only_to_their_owner(hub: FakeHub) -> None:
    for i in range(20):
        hub.add_model(f"alice/m{i}", {}, private=i == 0)
    assert len(search_models("m", None)) == 12
    assert search_models("alice/m0", None) == []
    assert [hit.id for hit in search_models("alice/m0", ALICE)] == ["alice/m0"]


@pytest.mark.parametrize("kind", [401, 429, 500, "drop"])
def test_failure_is_an_empty_list_at_once(hub: FakeHub, kind: int | str) -> None:
    hub.fail(kind, times=9)
    assert search_models("x", None) == []
    assert search_datasets("x", None) == []
    assert len(hub.requests) == 2


def test_a_token_that_is_none_is_an_empty_list(hub: FakeHub) -> None:
    assert search_models("x", "hf_é") == []


def config(model_type: str, architecture: str = "XForCausalLM", **more: object) -> dict[str, str]:
    stated = {"model_type": model_type, "architectures": [architecture], **more}
    return {"config.json": json.dumps(stated)}


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (config("qwen3"), ""),
        (config("qwen3_moe"), "mixture of experts"),
        (config("gemma3", "Gemma3ForConditionalGeneration"), "multimodal"),
        (config("qwen3_5_moe"), "multimodal, mixture of experts, hybrid"),
        (config("lfm2"), "hybrid"),
        (config("gpt_oss", quantization_config={"quant_method": "mxfp4"}), "mixture of experts, MXFP4"),
        (config("qwen3", quantization_config={"quant_method": "<b>"}), ""),
        (config("qwen3", quantization_config=["fp8"]), ""),
        ({"config.json": '["x"]'}, ""),
    ],
)  # fmt: skip
def test_a_model_comes_with_what_is_special(hub: FakeHub, files: dict, kind: str) -> None:
    hub.add_model("alice/special", files)
    assert [hit.kind for hit in search_models("special", None)] == [kind]


def test_models_that_also_see_are_found_and_those_that_write_nothing_are_not(hub: FakeHub) -> None:
    tasks = {"a": "image-text-to-text", "b": "text-generation", "c": "text-to-image", "d": None}
    for name, task in tasks.items():
        card = f"---\npipeline_tag: {task}\n---\n" if task else "x"
        hub.add_model(f"alice/task-{name}", {"README.md": card})
    assert {hit.id[-1] for hit in search_models("task-", None)} == {"a", "b", "d"}
