"""Runs that are watched: each is read and drawn once, in a thread of its own, however many tabs look at it.

The thread of a run ends when nobody has watched it for some seconds. What it draws goes to all tabs as the same bytes.
"""

import asyncio
import functools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_space.app.actions import Actions
from qlora_space.app.ui import pieces
from qlora_space.app.ui.followed_run import EventsReplaced, FollowedRun
from qlora_space.app.ui.pieces import Snapshot, ViewOptions
from qlora_space.app.ui.render import patch
from qlora_space.app.ui.render.changes import ComparedRun
from qlora_space.app.ui.render.samples import sample_steps
from qlora_space.core.errors import RunError
from qlora_space.core.visitor import Visitor
from qlora_space.runs import RunFolder, view_of

_log = logging.getLogger(__name__)
_READ_SECONDS = 0.05
_READ_SECONDS_OVER = 1.0  # another tab may resume, rename or delete it
_DRAW_SECONDS = 0.15  # at most so often, however many events there are
_IDLE_DRAW_SECONDS = 1.0  # "elapsed" goes on without events
_CHART_SECONDS = 1.0
_CHART_SHARE = 3  # charts of a very long run take at most a third of the time
_OTHERS_SECONDS = 5.0  # runs that are laid over this one
_HEARTBEAT_SECONDS = 15.0
_LINGER_SECONDS = 10.0  # a tab that changes its options comes back at once
_MOST_WAITING = 16  # messages for a tab that reads too slowly; then it gets the whole page again
_MOST_DRAWN = 64  # pieces that are kept for other tabs


@dataclass(frozen=True)
class Message:
    """JSON for a tab. After it the tab has seen `num_events` events; 0: it says nothing of that."""

    text: bytes
    num_events: int = 0
    kind: Literal["changes", "whole", "beat", "gone", "end"] = "changes"

    @functools.cached_property
    def body(self) -> bytes:
        """As a server-sent event; the same bytes for every tab."""
        match self.kind:
            case "changes" | "whole":
                return b"id: %d\ndata: %s\n\n" % (self.num_events, self.text)
            case "end":
                return b""
        return b"event: %s\ndata: %s\n\n" % (self.kind.encode(), self.text)

    @property
    def is_last(self) -> bool:
        return self.kind in ("gone", "end")


_BEAT = Message(b"0", kind="beat")  # an event without data would not be one
_END = Message(b"", kind="end")  # the tab comes back by itself


def gone(error: RunError) -> Message:
    """The run was deleted, or is no longer this visitor's to see."""
    return Message(json.dumps(str(error)).encode(), kind="gone")


class Viewer:
    """A tab that watches a run. Lives on the event loop; a watch's thread only reads `options` and `num_seen`."""

    def __init__(
        self,
        options: ViewOptions,
        others: tuple[RunFolder, ...],
        num_seen: int,
        *,
        is_guest: bool = False,
    ) -> None:
        """`is_guest`: it has a link and no account that the run is of."""
        self.options, self.others, self.num_seen = options, others, num_seen
        self.is_guest = is_guest
        self._waiting: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._is_behind = False

    def put(self, message: Message) -> None:
        """Without its predecessors a patch is worth nothing: a tab that is behind waits for a whole page."""
        if len(self._waiting) >= _MOST_WAITING and not message.is_last:
            self._waiting.clear()
            self._is_behind = True
        if message.kind == "whole" or message.is_last:
            self._is_behind = False
        if not self._is_behind:
            self._waiting.append(message)
        self._arrived.set()

    async def messages(self, rejoin: Callable[[], None]) -> AsyncIterator[Message]:
        """Until the last one. `rejoin` asks for a whole page."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                message = self._waiting.popleft()
                self.num_seen = max(self.num_seen, message.num_events)
                yield message
                if message.is_last:
                    return
            if self._is_behind:
                rejoin()


class _Channel:
    """Tabs with the same options: what they show, so that they are sent what is new."""

    def __init__(self, options: ViewOptions, others: tuple[RunFolder, ...], is_guest: bool) -> None:
        self.options, self.others, self.is_guest = options, others, is_guest
        self.viewers: set[Viewer] = set()
        self.pieces: dict[str, str] = {}
        self.values: dict[str, object] = {}

    def changes(self, new: dict[str, str], values: dict[str, object]) -> dict[str, object]:
        """What of pieces and values differs from what the tabs show; they show it from here on."""
        found = {name: value for name, value in values.items() if self.values.get(name) != value}
        patches = {
            name: patch.changes(self.pieces.get(name, ""), piece) or piece
            for name, piece in new.items()
            if self.pieces.get(name) != piece
        }
        self.pieces |= new
        self.values |= values
        return found | ({"pieces": patches} if patches else {})


class _Charts:
    """What depends on a tab's options and is costly: drawn once for all tabs that chose the same."""

    def __init__(self) -> None:
        self._seen: Snapshot | None = None
        self._drawn: dict[tuple[object, ...], str] = {}
        self._at = self._seconds = 0.0

    def are_due(self, seen: Snapshot, now: float) -> bool:
        waited = now - self._at
        if waited < max(_CHART_SECONDS, _CHART_SHARE * self._seconds):
            return False
        is_old = self._seen is None or self._seen.view is not seen.view
        return is_old or waited > _OTHERS_SECONDS

    def renew(self, seen: Snapshot, now: float) -> None:
        self._seen, self._at, self._seconds = seen, now, 0.0
        self._drawn.clear()

    def of(self, channel: _Channel) -> tuple[dict[str, str], dict[str, object]]:
        """Pieces, and the values that go with them."""
        seen, options = self._seen, channel.options
        assert seen is not None
        began = time.thread_time()
        steps = sample_steps(seen.view)
        at = options.at if options.at is not None else max(steps, default=0)
        shape = (options.is_smooth, options.is_log)
        drawn = {
            "charts-body": self._once(
                ("charts", *shape, options.steps), lambda: pieces.charts(seen, options)
            ),
            "overlay": self._once(
                ("overlay", *shape, channel.others),
                lambda: pieces.overlay(seen, _compared(channel.others), options),
            ),
            "timeline": self._once(("timeline", at), lambda: pieces.timeline(seen, at)),
            "samples": self._once(("samples", at), lambda: pieces.samples(seen, at)),
        }
        self._seconds += time.thread_time() - began
        if channel.is_guest and not seen.plan.dataset.is_public:
            return {"charts-body": drawn["charts-body"]}, {}
        return drawn, {"samples": {"count": len(steps), "last": max(steps, default=0), "at": at}}

    def _once(self, key: tuple[object, ...], draw: Callable[[], str]) -> str:
        if key not in self._drawn:
            if len(self._drawn) >= _MOST_DRAWN:
                del self._drawn[next(iter(self._drawn))]
            self._drawn[key] = draw()
        return self._drawn[key]


def _compared(runs: Iterable[RunFolder]) -> list[ComparedRun]:
    """Those runs as they are now; one that was deleted is left out."""
    return [ComparedRun(run.name(), run.plan(), view_of(run)) for run in runs if run.path.exists()]


class Watch:
    """Follows one run and draws it. Everything but `join`, `leave` and `close` happens in its thread."""

    def __init__(self, run: RunFolder, actions: Actions, loop: asyncio.AbstractEventLoop) -> None:
        self.run = run
        self._actions, self._loop = actions, loop
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._joining: list[Viewer] = []
        self._leaving: list[Viewer] = []
        self._channels: dict[tuple[ViewOptions, tuple[RunFolder, ...], bool], _Channel] = {}
        self._charts = _Charts()
        self._drawn_at = self._sent_at = 0.0
        self._num_told = 0
        self._watched_at = time.monotonic()
        self._is_closed = False

    def join(self, viewer: Viewer) -> None:
        """It gets a whole page, then what changes."""
        with self._lock:
            self._joining.append(viewer)
        self._wake.set()

    def leave(self, viewer: Viewer) -> None:
        with self._lock:
            self._leaving.append(viewer)

    def close(self) -> None:
        self._is_closed = True
        self._wake.set()

    @property
    def is_idle(self) -> bool:
        """Whether nobody has watched for some seconds."""
        with self._lock:
            is_watched = bool(self._joining or self._channels)
        if is_watched:
            self._watched_at = time.monotonic()
        return time.monotonic() - self._watched_at > _LINGER_SECONDS

    def follow(self, may_end: Callable[["Watch"], bool]) -> Message:
        """Until it may end, was closed, or there is nothing more to follow: the last message for those who watch."""
        try:
            followed = FollowedRun(self.run, self._actions)
            while not self._is_closed and not may_end(self):
                self._step(followed)
                over = followed.view.is_over
                self._wake.wait(_READ_SECONDS_OVER if over else _READ_SECONDS)
                self._wake.clear()
        except RunError as error:
            return gone(error)
        except EventsReplaced:
            return _END
        except Exception:
            _log.exception("a run is not followed any more")
        return _END

    def part(self, last: Message) -> None:
        """The last message for everybody."""
        self._put([*self._everyone(), *self._take_joining()], last)

    def _step(self, followed: FollowedRun) -> None:
        now, joining = time.monotonic(), self._take_joining()
        followed.read()
        is_new = followed.num_events > self._num_told
        waited = now - self._drawn_at
        if joining or waited > _IDLE_DRAW_SECONDS or (is_new and waited > _DRAW_SECONDS):
            self._draw(followed, now, joining)
        if now - self._sent_at > _HEARTBEAT_SECONDS:
            self._put(self._everyone(), _BEAT)

    def _draw(self, followed: FollowedRun, now: float, joining: Sequence[Viewer]) -> None:
        """First what is cheap and urgent, then the charts where they are due, then whole pages for who is new."""
        seen = followed.snapshot()
        status = functools.cache(functools.partial(_status, seen))
        lines = followed.log.since(self._num_told) if self._num_told < followed.num_events else ""
        self._drawn_at, self._num_told = now, followed.num_events
        for channel in self._channels.values():
            news = channel.changes(*status(channel.is_guest))
            self._tell(channel, news | ({"log": lines} if lines and not channel.is_guest else {}))
        if self._charts.are_due(seen, now):
            self._charts.renew(seen, now)
            for channel in self._channels.values():
                self._tell(channel, channel.changes(*self._charts.of(channel)))
        wholes: dict[tuple[object, ...], Message] = {}
        for viewer in joining:
            self._welcome(viewer, status, followed, wholes)

    def _welcome(
        self,
        viewer: Viewer,
        status: Callable[[bool], tuple[dict[str, str], dict[str, object]]],
        followed: FollowedRun,
        wholes: dict[tuple[object, ...], Message],
    ) -> None:
        key = (viewer.options, viewer.others, viewer.is_guest)
        if key not in self._channels:
            self._channels[key] = channel = _Channel(*key)
            channel.changes(*status(viewer.is_guest))
            channel.changes(*self._charts.of(channel))
        channel = self._channels[key]
        channel.viewers.add(viewer)
        first = viewer.num_seen if viewer.num_seen <= self._num_told else 0
        if (*key, first) not in wholes:
            lines = "" if viewer.is_guest else followed.log.since(first)
            whole = {"pieces": channel.pieces, "log": lines, "from": first}
            wholes[*key, first] = self._message({**channel.values, **whole}, "whole")
        self._put([viewer], wholes[*key, first])

    def _tell(self, channel: _Channel, news: dict[str, object]) -> None:
        if news:
            self._put(channel.viewers, self._message(news))

    def _message(
        self, news: dict[str, object], kind: Literal["changes", "whole"] = "changes"
    ) -> Message:
        text = json.dumps(news | {"seen": self._num_told}, ensure_ascii=False)
        return Message(text.encode(), self._num_told, kind)

    def _take_joining(self) -> list[Viewer]:
        """Those who came since the last time; those who went are forgotten."""
        with self._lock:
            joining, leaving = self._joining, set(self._leaving)
            self._joining, self._leaving = [], []
            for key, channel in list(self._channels.items()):
                channel.viewers -= leaving
                if not channel.viewers:
                    del self._channels[key]
        return [viewer for viewer in joining if viewer not in leaving]

    def _everyone(self) -> list[Viewer]:
        return [viewer for channel in self._channels.values() for viewer in channel.viewers]

    def _put(self, viewers: Iterable[Viewer], message: Message) -> None:
        self._sent_at = time.monotonic()
        try:
            self._loop.call_soon_threadsafe(_put_to_each, tuple(viewers), message)
        except RuntimeError:  # the server has stopped, and its loop with it
            self._is_closed = True


def _status(seen: Snapshot, is_guest: bool) -> tuple[dict[str, str], dict[str, object]]:
    if is_guest:
        return pieces.shared_pieces(seen), {}
    return pieces.status_pieces(seen), {"state": seen.state}


def _put_to_each(viewers: Iterable[Viewer], message: Message) -> None:
    for viewer in viewers:
        viewer.put(message)


class Watching:
    """All runs that are watched now; one per server."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions
        self._lock = threading.Lock()
        self._watches: dict[str, Watch] = {}
        self._is_closed = False

    def join(self, run: RunFolder, viewer: Viewer) -> None:
        """On the event loop; the viewer's messages come to it from then on."""
        with self._lock:
            if self._is_closed:
                viewer.put(_END)
                return
            watch = self._watches.get(run.id)
            if watch is None:
                owner = self._actions.for_visitor(Visitor(run.owner))
                watch = Watch(run, owner, asyncio.get_running_loop())
                self._watches[run.id] = watch
                name = f"watch {run.id[:8]}"
                threading.Thread(target=self._follow, args=(watch,), name=name, daemon=True).start()
            watch.join(viewer)

    def leave(self, run: RunFolder, viewer: Viewer) -> None:
        with self._lock:
            watch = self._watches.get(run.id)
        if watch is not None:
            watch.leave(viewer)

    def close(self) -> None:
        """End all streams: a server that stops does not wait for them."""
        with self._lock:
            self._is_closed = True
            watches = list(self._watches.values())
        for watch in watches:
            watch.close()

    def _follow(self, watch: Watch) -> None:
        last = watch.follow(self._may_end)
        with self._lock:  # who joins from here on starts another one
            if self._watches.get(watch.run.id) is watch:
                del self._watches[watch.run.id]
        watch.part(last)

    def _may_end(self, watch: Watch) -> bool:
        with self._lock:
            is_idle = watch.is_idle
            if is_idle:
                del self._watches[watch.run.id]
            return is_idle
