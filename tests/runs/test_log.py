from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from qlora_space.core.events import Finished, Metric, Note, event_from_line, event_to_line
from qlora_space.runs import EventLog, read_events

texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=80)


@given(
    text=texts, step=st.integers(0, 10**9), value=st.floats(allow_nan=False, allow_infinity=False)
)
def test_an_event_comes_back_as_it_was(text: str, step: int, value: float) -> None:
    for event in (
        Note(level="info", text=text),
        Metric(step=step, total_steps=step, values={"loss": value}),
    ):
        line = event_to_line(event)
        assert "\n" not in line
        assert event_from_line(line) == event


def test_seq_has_no_gaps_over_several_attempts(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    for _ in range(3):
        log = EventLog(file)
        for i in range(4):
            log.append(Note(level="info", text=str(i)))
        log.close()
    events, _ = read_events(file)
    assert [event.seq for event in events] == list(range(12))


def test_reading_goes_on_from_the_offset(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append(Note(level="info", text="a"))
    first, offset = read_events(tmp_path / "events.jsonl")
    log.append(Finished(step=1))
    second, _ = read_events(tmp_path / "events.jsonl", offset)
    assert [e.kind for e in first + second] == ["note", "finished"]


def test_half_a_line_is_not_read_and_is_removed_by_the_next_writer(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    EventLog(file).append(Note(level="info", text="a"))
    with file.open("a") as stream:
        stream.write('{"seq": 1, "kind": "no')
    assert len(read_events(file)[0]) == 1
    EventLog(file).append(Note(level="info", text="b"))
    events, _ = read_events(file)
    assert [(e.seq, e.text) for e in events if e.kind == "note"] == [(0, "a"), (1, "b")]


def test_a_missing_file_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "none.jsonl", 7) == ([], 7)
