import threading

from qlora_space.app.ui.live import log_tail, open_run
from qlora_space.core.events import Metric, Started
from qlora_space.core.request import TrainingRequest
from qlora_space.runs import EventLog, RunView, create_run
from tests.app.ui.fake import FakeActions, scripted_run


def test_a_watched_run_is_read_on_from_its_last_offset(actions: FakeActions) -> None:
    plan = actions.plan(TrainingRequest())
    run = create_run(actions.settings.runs_folder, TrainingRequest(), plan)
    log = EventLog(run.events_file)
    log.append(Started(place="here", pid=1, pid_start_time=0.0))
    live = open_run(actions, run)
    offset = live.offset
    log.append(Metric(step=1, total_steps=9, values={"loss": 2.0}))
    live.advance(actions)
    live.advance(actions)
    assert live.offset > offset
    assert len(live.events) == live.view.num_events == 2
    assert live.view.step == 1


def test_only_what_changed_is_sent_again(actions: FakeActions) -> None:
    live = open_run(actions, scripted_run(actions, "a", "finished"))
    assert live.changed({"head": "1", "log": "2"}) == {"head": "1", "log": "2"}
    assert live.changed({"head": "1", "log": "3"}) == {"log": "3"}


def test_the_log_shows_no_folder_of_the_server(actions: FakeActions) -> None:
    tail = log_tail(actions, scripted_run(actions, "a", "finished"))
    assert "loading …/base" in tail
    assert str(actions.settings.home) not in tail


def test_two_handlers_of_a_tab_fold_no_event_twice(actions: FakeActions) -> None:
    run = scripted_run(actions, "a", "finished")
    for _ in range(20):
        live = open_run(actions, run)
        live.offset, live.events, live.view = 0, [], RunView()
        threads = [threading.Thread(target=live.advance, args=(actions,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [event.seq for event in live.events] == list(range(len(live.events)))
