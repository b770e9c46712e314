"""A run that is followed, as its events come."""

import pytest

from qlora_space.app.ui.followed_run import EventsReplaced, FollowedRun
from qlora_space.core.errors import RunError
from qlora_space.core.events import Metric, Note, Started
from qlora_space.core.request import TrainingRequest
from qlora_space.runs import EventLog, create_run
from qlora_space.runs.folder import delete_run
from tests.app.ui.fake import FakeActions, scripted_run


def test_a_followed_run_is_read_on_from_its_last_offset(actions: FakeActions) -> None:
    run = create_run(
        actions.settings.runs_folder, TrainingRequest(), actions.plan(TrainingRequest())
    )
    log = EventLog(run.events_file)
    log.append(Started(place="here", pid=1, pid_start_time=0.0))
    followed = FollowedRun(run, actions)
    assert followed.read()
    assert not followed.read()
    log.append(Metric(step=1, total_steps=9, values={"loss": 2.0}))
    log.append(Note(level="warning", text="Free memory is low."))
    assert followed.read()
    assert followed.num_events == followed.view.num_events == 3
    assert followed.view.step == 1
    assert "Step 1 of 9" not in followed.log.since(2)
    assert "Free memory is low." in followed.log.since(2)


def test_a_name_that_another_tab_gives_is_seen(actions: FakeActions) -> None:
    followed = FollowedRun(run := scripted_run(actions, "a", "finished"), actions)
    assert followed.snapshot().name == "a"
    run.rename("b")
    assert followed.snapshot().name == "b"


def test_a_run_that_is_gone_or_another_one_is_not_followed(actions: FakeActions) -> None:
    gone, other = scripted_run(actions, "a", "finished"), scripted_run(actions, "b", "finished")
    followed = [FollowedRun(run, actions) for run in (gone, other)]
    for each in followed:
        each.read()
    delete_run(gone)
    with pytest.raises(RunError):
        followed[0].read()
    with pytest.raises(RunError):
        FollowedRun(gone, actions)
    other.events_file.write_text("")
    with pytest.raises(EventsReplaced):
        followed[1].read()
