"""HF Jobs of the fake Hub: jobs are kept, billed and logged as the real client reads them; a test says what happens in
one, or lets its command really run (`runner`)."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.fake_spaces import HARDWARE

ENDED = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
_TICK_SECONDS = 0.02


def _gpu(name: str, model: str, count: int, vram: int, micro_usd: int) -> dict[str, Any]:
    accelerator = {
        "type": "gpu",
        "model": model,
        "quantity": str(count),
        "vram": f"{vram} GB",
        "manufacturer": "Nvidia",
    }
    return {
        "name": name,
        "prettyName": f"{count}x Nvidia {model}",
        "cpu": "8 vCPU",
        "ram": "30 GB",
        "ephemeralStorage": "400 GB",
        "accelerator": accelerator,
        "unitCostMicroUSD": micro_usd,
        "unitCostUSD": micro_usd / 1e6,
        "unitLabel": "minute",
    }


JOB_HARDWARE = (
    {**HARDWARE[0], "ephemeralStorage": "50 GB", "unitCostMicroUSD": 167, "unitCostUSD": 0.000167},
    _gpu("t4-small", "T4", 1, 16, 6_667),
    _gpu("l4x1", "L4", 1, 24, 13_333),
    _gpu("l4x4", "L4", 4, 96, 63_333),
    _gpu("l40sx1", "L40S", 1, 48, 30_000),
    _gpu("a100-large", "A100", 1, 80, 41_667),
    _gpu("h200", "H200", 1, 141, 83_333),
)


@dataclass
class Job:
    """One job. Times are Unix times; `billed_seconds` of a finished one stays."""

    id: str
    namespace: str
    spec: dict[str, Any]
    created_at: float = field(default_factory=time.time)
    stage: str = "SCHEDULING"
    message: str | None = None
    log: list[tuple[str, float]] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    started_at: float | None = None
    ended_at: float | None = None
    on_cancel: Callable[[], None] = lambda: None

    def say(self, *lines: str) -> None:
        """What it prints."""
        self.log += [(line, time.time()) for line in lines]

    def run(self) -> None:
        self.stage, self.started_at = "RUNNING", time.time()

    def end(self, stage: str = "COMPLETED", message: str | None = None) -> None:
        if self.stage not in ENDED:
            self.stage, self.message, self.ended_at = stage, message, time.time()

    def as_json(self) -> dict[str, Any]:
        end = self.ended_at or time.time()
        running = int(end - self.started_at) if self.started_at else None
        return {
            "id": self.id,
            "createdAt": datetime.fromtimestamp(self.created_at, UTC).strftime(
                "%Y-%m-%dT%H:%M:%S.%fZ"
            ),
            "dockerImage": self.spec.get("dockerImage"),
            "command": self.spec["command"],
            "arguments": self.spec["arguments"],
            "environment": self.spec["environment"],
            "secrets": dict.fromkeys(self.spec.get("secrets", {}), ""),  # their names alone
            "flavor": self.spec["flavor"],
            "labels": self.labels,
            "status": {"stage": self.stage, "message": self.message},
            "durations": {"schedulingSecs": 1, "runningSecs": running, "totalSecs": running},
            "owner": {"id": self.namespace, "name": self.namespace, "type": "user"},
        }


class JobsApi:
    """The routes of HF Jobs. `hub` is a FakeHub: its `jobs`, `job_credit` and `job_runner` are what tests set."""

    def __init__(self, hub: Any, refusal: type[Exception]) -> None:
        self.hub, self.refusal = hub, refusal

    def routes(self) -> list[Route]:
        one = "/api/jobs/{ns}/{job}"
        return [
            Route("/api/jobs/hardware", self.hardware),
            Route("/api/jobs/{ns}", self.submit, methods=["POST"]),
            Route("/api/jobs/{ns}", self.listing),
            Route(one, self.inspect),
            Route(f"{one}/logs", self.logs),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
            Route(f"{one}/labels", self.set_labels, methods=["PUT"]),
        ]

    async def hardware(self, _: Request) -> Response:
        return JSONResponse(list(JOB_HARDWARE))

    async def submit(self, request: Request) -> Response:
        namespace = self._allowed(request)
        if not self.hub.job_credit:
            raise self.refusal(402, "Pre-paid credit balance is insufficient.")
        spec = await request.json()
        job = Job(f"job{len(self.hub.jobs):021d}", namespace, spec)
        job.labels = dict(spec.get("labels") or {})
        self.hub.jobs[job.id] = job
        if self.hub.job_runner:
            self.hub.job_runner(job)
        return JSONResponse(job.as_json())

    async def listing(self, request: Request) -> Response:
        namespace = self._allowed(request)
        return JSONResponse(
            [j.as_json() for j in self.hub.jobs.values() if j.namespace == namespace]
        )

    async def inspect(self, request: Request) -> Response:
        return JSONResponse(self._job(request).as_json())

    async def cancel(self, request: Request) -> Response:
        job = self._job(request)
        job.end("CANCELED")
        job.on_cancel()
        return JSONResponse(job.as_json())

    async def set_labels(self, request: Request) -> Response:
        job = self._job(request)
        job.labels = (await request.json())["labels"]
        return JSONResponse(job.as_json())

    async def logs(self, request: Request) -> Response:
        """All lines from the first on, then new ones, until the job is over."""
        job = self._job(request)

        async def events() -> AsyncIterator[str]:
            sent = 0
            while True:
                is_over = job.stage in ENDED
                for line, at in job.log[sent:]:
                    stamp = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
                    yield f"data: {json.dumps({'data': line, 'timestamp': stamp})}\n\n"
                    sent += 1
                    if self.hub.log_drops and sent in self.hub.log_drops:
                        self.hub.log_drops.remove(sent)
                        return
                if is_over:
                    return
                if await request.is_disconnected():
                    return
                await asyncio.sleep(_TICK_SECONDS)

        return StreamingResponse(events(), media_type="text/event-stream")

    def _allowed(self, request: Request) -> str:
        user, namespace = self.hub.user_of(request), request.path_params["ns"]
        if user is None:
            raise self.refusal(401, "Invalid username or password.")
        if not user.may_run_jobs:
            raise self.refusal(403, "You do not have the required permissions: jobs.")
        if namespace not in (user.name, *user.orgs):
            raise self.refusal(403, "You do not have access to this namespace.")
        return namespace

    def _job(self, request: Request) -> Job:
        namespace, job = self._allowed(request), self.hub.jobs.get(request.path_params["job"])
        if job is None or job.namespace != namespace:
            raise self.refusal(404, "Job not found")
        return job
