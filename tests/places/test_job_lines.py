"""Events come out of a job's log once and in order, however it was replayed, cut or lost."""

import json

from hypothesis import given
from hypothesis import strategies as st

from qlora_space.core.events import Event, Metric, Note, Sample, event_to_line
from qlora_space.places.job_lines import EventLines, is_of_event, lines_of

_texts = st.text(max_size=40) | st.sampled_from(
    [
        "line\nend\u2028qlora_space.event 3 1/1 {}",
        "\x85\x1c",
        "é" * 3000,
        "😀" * 1500,
        '"\\' * 1200,
    ]
)
_events = st.lists(
    st.one_of(
        _texts.map(lambda text: Note(level="info", text=text)),
        _texts.map(lambda text: Sample(step=1, prompt=text, expected="", text=text)),
        st.floats(0, 1e9).map(lambda loss: Metric(step=1, total_steps=2, values={"loss": loss})),
    ),
    max_size=6,
)


def stamped(events: list[Event], first: int) -> list[Event]:
    return [e.model_copy(update={"seq": first + i, "time": i + 0.1}) for i, e in enumerate(events)]


def printed(events: list[Event]) -> list[str]:
    return [line for event in events for line in lines_of(event.seq, event_to_line(event))]


@given(_events, st.data())
def test_a_log_that_breaks_off_and_starts_again_at_any_lines_gives_each_event_once(
    events: list[Event], data: st.DataObject
) -> None:
    sent = stamped(events, 5)
    log = printed(sent)
    reader, came = EventLines(next_seq=5), []
    for upto in [*data.draw(st.lists(st.integers(0, len(log)), max_size=4)), len(log)]:
        for line in log[:upto]:
            came += reader.take_line(line)
    assert came == sent
    assert [event_to_line(e) for e in came] == [event_to_line(e) for e in sent]
    assert not reader.is_waiting


@given(_events, st.data())
def test_lines_that_are_lost_hold_back_what_is_after_them_until_it_comes_another_way(
    events: list[Event], data: st.DataObject
) -> None:
    sent = stamped(events, 0)
    log = printed(sent)
    lost = data.draw(st.sets(st.integers(0, max(0, len(log) - 1))))
    reader, came = EventLines(next_seq=0), []
    for number, line in enumerate(log):
        if number not in lost:
            came += reader.take_line(line)
    assert came == sent[: len(came)], "nothing out of its order"
    for event in sent:
        came += reader.take_event_line(event_to_line(event).encode())
    assert came == sent


@given(_texts)
def test_a_line_of_a_log_is_short_plain_and_one_line(text: str) -> None:
    event = Note(level="info", text=text, seq=7)
    for line in lines_of(7, event_to_line(event)):
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 2100
        assert is_of_event(line)


def test_what_is_no_event_is_none() -> None:
    reader = EventLines(next_seq=0)
    for line in (
        "worker: qlora_space.event 0 1/1 {}",
        "qlora_space.event 0 1/1 {}",
        "qlora_space.event 0 9/1 {}",
        "qlora_space.event 99999999999999 1/1 {}",
        f"qlora_space.event 0 1/1 {event_to_line(Note(level='info', text='', seq=3))}",
        "",
    ):
        assert reader.take_line(line) == []
    assert reader.take_event_line(b"{") == []
    assert reader.take_event_line(json.dumps({"seq": "x"}).encode()) == []
    assert reader.next_seq == 0
