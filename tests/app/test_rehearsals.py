"""Where an adapter is to go is checked with the plan, and a run that could not be published there does not start."""

import pytest

from qlora_space.app.rehearsals import Rehearsals
from qlora_space.app.ui.draft import Draft, examine, readiness
from qlora_space.app.ui.form import LABELS, form_values
from qlora_space.app.ui.render.plan import card
from qlora_space.core.errors import HubError
from qlora_space.core.rehearsal import Rehearsal
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import Settings
from qlora_space.hub import Target
from tests.app.ui.fake import FakeActions


def test_the_hub_is_asked_once_for_the_same_name_and_visitor_and_anew_before_a_start() -> None:
    asked = []

    def ask(repo: str, private: bool, token: str | None) -> Rehearsal:
        asked.append((repo, private, token))
        return Rehearsal(repo=repo, state="new", is_private=private)

    rehearsals = Rehearsals(ask)
    request = TrainingRequest(hub_model_id="ada/tea")
    assert rehearsals.of(TrainingRequest(), None) is None
    for token in ("one", "one", "two"):
        assert rehearsals.of(request, token)
    rehearsals.of(request.model_copy(update={"hub_private_repo": False}), "one")
    assert asked == [("ada/tea", True, "one"), ("ada/tea", True, "two"), ("ada/tea", False, "one")]
    assert not any("one" in str(key) for key in rehearsals._known), "a token is kept"
    rehearsals.forget("one")
    for token in ("one", "two"):
        rehearsals.of(request, token)
    assert asked[3:] == [("ada/tea", True, "one")]


@pytest.fixture
def actions(tmp_path: object) -> FakeActions:
    return FakeActions(Settings(home=tmp_path), step_seconds=0)  # type: ignore[arg-type]


def test_the_plan_says_where_the_adapter_goes(actions: FakeActions) -> None:
    assert actions.plan(TrainingRequest()).publishing is None
    plan = actions.plan(TrainingRequest(hub_model_id="ada/tea"))
    assert plan.publishing == Rehearsal(repo="ada/tea", state="new", is_private=True)
    assert "ada/tea: new repository, private" in card(plan, LABELS, "")
    run = actions.start(TrainingRequest(hub_model_id="ada/tea"))
    assert run.plan().publishing == plan.publishing


def test_a_name_that_cannot_be_published_to_keeps_start_shut(actions: FakeActions) -> None:
    actions.repos["ada/<tea>"] = Target("foreign")
    request = TrainingRequest(hub_model_id="ada/<tea>")
    draft = examine(actions, form_values(request), Draft())
    assert draft.plan is not None, "the plan is shown all the same"
    assert readiness(draft) == ("Publishing would fail: see the plan", False)
    shown = card(draft.plan, LABELS, "")
    assert "ada/&lt;tea&gt; holds files of something else" in shown
    with pytest.raises(HubError, match="holds files of something else"):
        actions.start(request)
    assert actions.runs() == []


def test_a_hub_that_cannot_be_reached_is_no_refusal(actions: FakeActions) -> None:
    actions.is_offline = True
    draft = examine(actions, form_values(TrainingRequest(hub_model_id="ada/tea")), Draft())
    assert readiness(draft) == ("Can't reach the Hub", False)
    assert readiness(examine(actions, form_values(TrainingRequest()), Draft()))[1]
