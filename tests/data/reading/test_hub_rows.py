"""A Hub that goes away in the middle of a dataset is a sentence about the Hub, not about the dataset."""

import pytest

from qlora_space.core.errors import HubError
from qlora_space.data.reading.hub_rows import open_hub_source
from tests.fake_hub import FakeHub


@pytest.mark.parametrize("kind", [503, "drop"])
def test_a_hub_that_goes_away_while_rows_are_read_is_a_hub_error(
    hub: FakeHub, kind: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.add_dataset("alice/data", {"train.jsonl": '{"text": "one"}\n'})
    source = open_hub_source("alice/data", None, None, None, None)
    hub.fail(kind, path="/resolve/.*jsonl", times=999)  # type: ignore[arg-type]
    with pytest.raises(HubError, match="The Hub did not send"):
        list(source.read())
