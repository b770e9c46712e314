"""Events of a run on their way through a job's log: what the job prints, and how events come out of it again.

A log may be replayed from its first line, break off anywhere, or lose lines; platforms cut lines that are long. So an
event is printed in pieces of plain ASCII with its `seq`, and comes out once and in order.
"""

import json
import re
from collections.abc import Iterator

from pydantic import ValidationError

from qlora_space.core.events import Event, event_from_line

_MARK = "qlora_space.event"
_PIECE_CHARS = 2000
_MOST_PIECES = 2000  # 4 MB: no event is as long
_LINE = re.compile(rf"{re.escape(_MARK)} (\d{{1,12}}) (\d{{1,6}})/(\d{{1,6}}) (.*)", re.DOTALL)


def lines_of(seq: int, event_line: str) -> Iterator[str]:
    """The lines of a log that carry this line of events.jsonl."""
    ascii_only = "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in event_line)
    ascii_only = ascii_only.replace(
        "\x7f", "\\u007f"
    )  # the only character to act that JSON leaves as it is
    pieces = [ascii_only[at : at + _PIECE_CHARS] for at in range(0, len(ascii_only), _PIECE_CHARS)]
    for number, piece in enumerate(pieces, 1):
        yield f"{_MARK} {seq} {number}/{len(pieces)} {piece}"


def is_of_event(line: str) -> bool:
    return line.startswith(_MARK)


class EventLines:
    """Puts events together. `next_seq`: of the first that is not known yet."""

    def __init__(self, next_seq: int) -> None:
        self.next_seq = next_seq
        self._pieces: dict[int, dict[int, str]] = {}
        self._whole: dict[int, Event] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether later events are here, and an earlier one is not."""
        return bool(self._whole)

    def take_line(self, line: str) -> list[Event]:
        """Of the log: the events that are complete with it, in order; none of a line that is no event's."""
        match = _LINE.fullmatch(line.rstrip("\r\n"))
        if match is None:
            return []
        seq, number, total = (int(match[i]) for i in (1, 2, 3))
        if seq < self.next_seq or seq in self._whole or not 0 < number <= total <= _MOST_PIECES:
            return []
        pieces = self._pieces.setdefault(seq, {})
        pieces[number] = match[4]
        if len(pieces) < total:
            return []
        del self._pieces[seq]
        return self._take(seq, "".join(pieces[n] for n in sorted(pieces)))

    def take_event_line(self, line: bytes) -> list[Event]:
        """Of an events.jsonl that came another way."""
        try:
            seq = int(json.loads(line)["seq"])
        except (ValueError, KeyError, TypeError):
            return []
        return [] if seq < self.next_seq else self._take(seq, line.decode())

    def give_up(self) -> list[Event]:
        """What is here, without what will not come any more."""
        left = [self._whole[seq] for seq in sorted(self._whole)]
        self._whole.clear()
        return left

    def _take(self, seq: int, text: str) -> list[Event]:
        try:
            event = event_from_line(text)
        except ValidationError:
            return []
        if event.seq == seq:
            self._whole.setdefault(seq, event)
        ready = []
        while self.next_seq in self._whole:
            ready.append(self._whole.pop(self.next_seq))
            self.next_seq += 1
        return ready
