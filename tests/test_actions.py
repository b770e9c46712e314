"""Whose token is used: the visitor's on a Space, never this machine's."""

from pathlib import Path

import pytest

from qlora_space.actions import Actions
from qlora_space.comparison import Sampling
from qlora_space.errors import QloraSpaceError
from qlora_space.settings import Settings
from tests.fake_hub import ALICE, BOB, FakeHub


@pytest.mark.parametrize(("token", "user"), [(None, ""), (BOB, "bob")])
def test_an_adapter_to_compare_is_asked_for_as_the_visitor(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, user: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE)  # the Space's own
    hub.add_model("alice/secret", {"adapter_config.json": "{}"}, private=True)
    actions = Actions(Settings(home=tmp_path, is_space=True))
    with pytest.raises(QloraSpaceError, match="alice/secret"):
        list(actions.compare_adapter("alice/secret", "Hello", "", Sampling(), token))
    assert {seen.user for seen in hub.requests} == {user}
