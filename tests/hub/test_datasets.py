"""Configurations and splits by name, and sentences that name the ones that exist."""

import pytest

from qlora_space.core.errors import DatasetError, HubError
from qlora_space.hub import dataset_source
from tests.fake_hub import ALICE, BOB, FakeHub

ROWS = '{"text": "one"}\n{"text": "two"}\n'
CARD = """---
license: mit
configs:
- config_name: small
  data_files:
  - split: train
    path: small/a.jsonl
  - split: test
    path: small/b.jsonl
- config_name: large
  default: true
  data_files:
  - split: main
    path: large/a.jsonl
dataset_info:
- config_name: small
  splits:
  - name: train
    num_examples: 2
    num_bytes: 60
  - name: test
    num_examples: 1
    num_bytes: 30
  download_size: 77
  dataset_size: 90
---
"""
FILES = {
    "README.md": CARD,
    "small/a.jsonl": ROWS,
    "small/b.jsonl": ROWS,
    "large/a.jsonl": ROWS,
}


def test_names_are_chosen_where_none_are_given(hub: FakeHub) -> None:
    repo = hub.add_dataset("alice/data", {"train.jsonl": ROWS, "validation.jsonl": ROWS})
    source = dataset_source("alice/data", None, None, None, None)
    assert source.sha == repo.head.sha
    assert (source.config, source.split, source.eval_split) == ("default", "train", "validation")
    assert (source.configs, source.splits) == (("default",), ("train", "validation"))
    assert source.num_bytes == 2 * len(ROWS)


def test_the_cards_configurations_count(hub: FakeHub) -> None:
    hub.add_dataset("alice/data", FILES)
    small = dataset_source("alice/data", "small", None, None, None)
    assert (small.configs, small.splits) == (("small", "large"), ("train", "test"))
    assert (small.split, small.eval_split, small.license) == ("train", "test", "mit")
    assert (small.num_rows, small.num_bytes) == (2, 77)
    default = dataset_source("alice/data", None, None, None, None)
    assert (default.config, default.split, default.eval_split) == ("large", "main", "")
    assert dataset_source("alice/data", "small", "test", None, None).eval_split == ""


def test_unknown_names_are_answered_with_the_known_ones(hub: FakeHub) -> None:
    hub.add_dataset("alice/data", FILES)
    with pytest.raises(DatasetError, match=r"no configuration 'medium'.* small, large"):
        dataset_source("alice/data", "medium", None, None, None)
    with pytest.raises(DatasetError, match=r"no split 'dev'.* train, test"):
        dataset_source("alice/data", "small", "dev", None, None)
    with pytest.raises(DatasetError, match="no revision 'v9'"):
        dataset_source("alice/data", None, None, "v9", None)
    with pytest.raises(DatasetError, match="does not exist or is private"):
        dataset_source("alice/none", None, None, None, None)


@pytest.mark.parametrize("id", ["/proc/self/environ", "../x", "a b", "http://x/y", "x/y/z"])
def test_text_that_cannot_be_an_id_is_never_sent(hub: FakeHub, id: str) -> None:
    with pytest.raises(DatasetError, match="neither a Hub dataset nor a file"):
        dataset_source(id, None, None, None, None)
    assert hub.requests == []


def test_an_older_revision_is_used_as_it_was(hub: FakeHub) -> None:
    repo = hub.add_dataset("alice/data", {"train.jsonl": ROWS})
    old = repo.head.sha
    repo.commit({}, "empty it")
    assert dataset_source("alice/data", None, None, old, None).sha == old


def test_private_and_gated_need_the_right_token(hub: FakeHub) -> None:
    hub.add_dataset("alice/private", {"train.jsonl": ROWS}, private=True)
    gated = hub.add_dataset("alice/gated", {"train.jsonl": ROWS}, gated=True)
    assert dataset_source("alice/private", None, None, None, ALICE).split == "train"
    with pytest.raises(DatasetError, match="private"):
        dataset_source("alice/private", None, None, None, BOB)
    with pytest.raises(DatasetError, match="gated") as refused:
        dataset_source("alice/gated", None, None, None, BOB)
    assert f"{hub.url}/datasets/alice/gated" in refused.value.hint
    gated.accepted.add("bob")
    assert dataset_source("alice/gated", None, None, None, BOB).gated


def test_no_data_a_script_and_a_broken_card_are_sentences(hub: FakeHub) -> None:
    hub.add_dataset("alice/empty", {"README.md": "nothing"})
    hub.add_dataset("alice/script", {"script.py": "raise SystemExit"})
    hub.add_dataset("alice/broken", {"README.md": "---\nconfigs: 3\n---\n", "a.jsonl": ROWS})
    for id in ("alice/empty", "alice/script", "alice/broken"):
        with pytest.raises(DatasetError) as refused:
            dataset_source(id, None, None, None, None)
        assert id in refused.value.what
        assert refused.value.hint


def test_anonymous_stays_anonymous(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE)
    hub.add_dataset("alice/data", {"train.jsonl": ROWS})
    dataset_source("alice/data", None, None, None, None)
    assert {r.user for r in hub.requests} == {""}


@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5, 6])
def test_a_hub_that_goes_away_is_a_hub_error(
    hub: FakeHub, waits: list[float], nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.add_dataset("alice/data", FILES)
    hub.fail(503, nth=nth, times=9999)
    with pytest.raises(HubError, match="could not be read"):
        dataset_source("alice/data", None, None, None, None)
