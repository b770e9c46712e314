"""Suggestions: typed, few, and never an error."""

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
