"""What a Space on ZeroGPU finds around it: the API that grants, counts and takes back GPUs, over HTTP.

The platform's own library talks to it, unchanged. torch of a CPU has no CUDA for it to patch, so it finds
none (SITE), which it allows. A process that holds a GPU longer than it asked for is killed, as there.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

# Every Python that starts runs it. spaces patches torch where it finds it, and does without where it does not.
SITE = """
import importlib.machinery, sys

class WithoutTorch(importlib.machinery.SourceFileLoader):
    def exec_module(self, module):
        assert "torch" not in sys.modules, "spaces must be imported before torch"
        sys.modules["torch"] = None
        try:
            super().exec_module(module)
        finally:
            del sys.modules["torch"]

class OfSpaces:
    def find_spec(self, name, path=None, target=None):
        if name != "spaces":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = WithoutTorch(name, spec.origin)
        return spec

sys.meta_path.insert(0, OfSpaces())
"""
Refuse = Callable[[], Response]


@dataclass
class Call:
    """A request for a GPU, and what became of it. Times are Unix times."""

    token: str | None
    seconds: float
    task: str
    pid: int = 0
    allowed_at: float = 0.0
    released_at: float = 0.0
    failed: bool = False
    was_killed: bool = False


@dataclass
class FakeZeroGpu:
    """`refusals` are answered first, one a request. `left_seconds`: of the quota of each visitor, None without end.
    `kill_after`: seconds after which a call is killed, whatever it asked for; the next calls in order, 0 for none."""

    refusals: list[Refuse] = field(default_factory=list)
    left_seconds: dict[str, float] = field(default_factory=dict)
    kill_after: list[float] = field(default_factory=list)
    keeps_warm: bool = True
    most_seconds: float = 1e9
    reports: int = 0
    calls: list[Call] = field(default_factory=list)
    url: str = ""

    def environment(self, folder: Path) -> dict[str, str]:
        """Variables of a Space on such hardware; `folder` gets what they name."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup").write_text("0::/test\n")
        (folder / "sitecustomize.py").write_text(SITE)
        return {
            "SPACES_ZERO_GPU": "true",
            "SPACES_ZERO_DEVICE_API_URL": self.url,
            "ZEROGPU_PROC_SELF_CGROUP_PATH": str(folder / "cgroup"),
            "PYTHONPATH": os.pathsep.join((str(folder), str(Path(__file__).parents[1]))),
        }

    def app(self) -> Starlette:
        def post(path: str, endpoint: Any) -> Route:
            return Route(path, endpoint, methods=["POST"])

        return Starlette(
            routes=[
                post("/startup-report", self._report),
                post("/schedule", self._schedule),
                post("/allow", self._allow),
                post("/release", self._release),
            ]
        )

    async def _report(self, _: Request) -> Response:
        self.reports += 1
        return Response(status_code=200)

    async def _schedule(self, request: Request) -> Response:
        query = request.query_params
        call = Call(query.get("token"), float(query["durationSeconds"]), query["taskId"])
        if self.refusals:
            return self.refusals.pop(0)()
        if call.seconds > self.most_seconds:
            return quota_answer(0, -1, "illegal-duration")
        left = self.left_seconds.get(call.token or "", 1e9)
        if call.seconds > left:
            return quota_answer(int(left), 18753)
        self.calls.append(call)
        before = [c for c in self.calls[:-1] if c.task == call.task and c.pid]
        idle = self.keeps_warm and bool(before) and psutil.pid_exists(before[-1].pid)
        if idle:  # a worker that is there is not asked to be allowed again
            self._grant(call, before[-1].pid)
        return JSONResponse(
            {
                "idle": idle,
                "nvidiaIndex": 0,
                "nvidiaUUID": "GPU-0",
                "allowToken": str(len(self.calls) - 1),
            }
        )

    async def _allow(self, request: Request) -> Response:
        query = request.query_params
        self._grant(self.calls[int(query["allowToken"])], int(query["pid"]))
        return Response(status_code=200)

    def _grant(self, call: Call, pid: int) -> None:
        call.pid, call.allowed_at = pid, time.time()
        wanted = self.kill_after.pop(0) if self.kill_after else 0.0
        timer = threading.Timer(wanted or call.seconds, self._kill, (call,))
        timer.daemon = True
        timer.start()

    def _kill(self, call: Call) -> None:
        if not call.released_at:
            call.was_killed = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(call.pid, signal.SIGKILL)

    async def _release(self, request: Request) -> Response:
        call = self.calls[int(request.query_params["allowToken"])]
        call.released_at = time.time()
        call.failed = request.query_params["fail"] == "true"
        used = call.released_at - (call.allowed_at or call.released_at)
        if call.token in self.left_seconds:
            self.left_seconds[call.token] -= used
        return Response(status_code=404 if call.was_killed else 200)


def quota_answer(left: int, wait: float, result: str = "quota-exceeded") -> Response:
    """Refused for a visitor's quota; below 0 `wait` says that no quota is so long."""
    headers = {"X-Authenticated": "regular", "X-Approve-Result": result}
    return JSONResponse({"left": left, "wait": wait}, 429, headers=headers)


def queue_answer(*events: str) -> Response:
    """The stream of a visitor who waits for a GPU."""

    def stream() -> Iterator[str]:
        for event in events:
            yield f"event: {event}\n\n"
            time.sleep(0.05)  # each is read by itself

    return StreamingResponse(
        stream(), media_type="text/event-stream", headers={"X-Queuing-Reason": "node"}
    )


@contextlib.contextmanager
def running_zero_gpu() -> Iterator[FakeZeroGpu]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fake = FakeZeroGpu(url=f"http://127.0.0.1:{port}")
    server = uvicorn.Server(uvicorn.Config(fake.app(), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(10)
