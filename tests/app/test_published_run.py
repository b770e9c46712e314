"""The settings of a published run come through the inspector's child, which parses what strangers wrote."""

from pathlib import Path

import pytest

from qlora_space.app.actions import Actions
from qlora_space.core.errors import ModelError, RequestError
from qlora_space.core.settings import Settings
from qlora_space.core.visitor import ANONYMOUS, LOCAL, Visitor
from tests.fake_hub import ALICE, FakeHub
from tests.hub.test_published_run import NAME, record_of


def test_a_visitor_reads_a_run_and_nobody_without_a_sign_in(hub: FakeHub, tmp_path: Path) -> None:
    hub.add_model(NAME, {"qlora_space.json": record_of(tmp_path)}, private=True)
    hub.add_model("alice/broken", {"qlora_space.json": "[1]"})
    actions = Actions(Settings(home=tmp_path / "home"))
    try:
        alice = actions.for_visitor(Visitor(LOCAL, ALICE))
        found = alice.published_run(f" {NAME} ")
        assert (found.request.dataset, found.request.r) == ("alice/data", 8)
        with pytest.raises(ModelError, match="no run in it"):
            alice.published_run("alice/broken")
        with pytest.raises(RequestError, match="Sign in"):
            actions.for_visitor(ANONYMOUS).published_run(NAME)
    finally:
        actions.close()
