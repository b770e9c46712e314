"""Named endpoints for programs: plain JSON in, plain JSON out, the same actions as the page."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.ui.boundary import shows_errors
from qlora_space.app.ui.draft import request_from
from qlora_space.core.comparison import Sampling
from qlora_space.core.parsing import parse_values
from qlora_space.runs import read_events

Endpoint = Callable[..., Any]


def add_api(actions: Actions) -> None:
    """Register inspect, plan, start, events, stop, resume, compare and publish in the current Blocks."""
    endpoints = (*_before_a_run(actions), *_during_a_run(actions), *_after_a_run(actions))
    for endpoint in endpoints:
        gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=8)


def _before_a_run(actions: Actions) -> tuple[Endpoint, ...]:
    @shows_errors
    def inspect(request: dict, token: gr.OAuthToken | None) -> dict:
        """How a dataset would be trained: format, rows, lengths, findings, sample tokens."""
        parsed = request_from(actions.settings, request)
        return actions.inspect(parsed, token and token.token).model_dump(mode="json")

    @shows_errors
    def plan(request: dict, token: gr.OAuthToken | None) -> dict:
        """Every number fixed with its reason, memory, time and price, without training."""
        parsed = request_from(actions.settings, request)
        return actions.plan(parsed, token and token.token).model_dump(mode="json")

    @shows_errors
    def start(request: dict, token: gr.OAuthToken | None) -> dict:
        """Start a run; answers with its id at once."""
        run = actions.start(request_from(actions.settings, request), token and token.token)
        return {"run_id": run.id}

    return inspect, plan, start


def _during_a_run(actions: Actions) -> tuple[Endpoint, ...]:
    _run = actions.run

    @shows_errors
    def events(run_id: str, since: int = 0) -> list[dict]:
        """Events with seq >= since, oldest first."""
        found, _ = read_events(_run(run_id).events_file)
        return [event.model_dump(mode="json") for event in found if event.seq >= since]

    @shows_errors
    def stop(run_id: str, keep: bool = True) -> dict:
        """Stop a run, keeping its adapter or not."""
        run = _run(run_id)
        actions.stop(run, keep)
        return {"run_id": run.id, "status": actions.view(run).status}

    @shows_errors
    def resume(run_id: str, token: gr.OAuthToken | None) -> dict:
        """Continue a run from its newest checkpoint; it is queued while another run has the machine."""
        run = _run(run_id)
        actions.resume(run, token and token.token)
        return {"run_id": run.id, "status": actions.view(run).status}

    return events, stop, resume


def _after_a_run(actions: Actions) -> tuple[Endpoint, ...]:
    _run = actions.run

    @shows_errors
    def compare(
        run_id: str,
        prompt: str,
        token: gr.OAuthToken | None,
        system: str = "",
        sampling: dict | None = None,
    ) -> Iterator[dict]:
        """Base and adapted answer, streamed: loading, chunk, done."""
        run, parsed = _run(run_id), parse_values(Sampling, sampling or {})
        for reply in actions.compare(run, prompt, system, parsed, token and token.token):
            yield reply.model_dump(mode="json")

    @shows_errors
    def publish(run_id: str, repo: str, private: bool, token: gr.OAuthToken | None) -> dict:
        """Push the adapter as one commit and verify it."""
        published = actions.publish(_run(run_id), repo, private, token and token.token)
        return asdict(published)

    return compare, publish
