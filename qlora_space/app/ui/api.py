"""Named endpoints for programs: plain JSON in, plain JSON out, the same actions as the page."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from qlora_space.app.actions import Actions
from qlora_space.app.comparing import compare_and_keep
from qlora_space.app.ui.boundary import for_visitor
from qlora_space.app.ui.draft import request_from
from qlora_space.core.comparison import CompareOptions, Question
from qlora_space.core.parsing import parse_values
from qlora_space.runs import PushRequest, read_events

Endpoint = Callable[..., Any]


def add_api(actions: Actions) -> None:
    """Register inspect, plan, start, events, stop, resume, compare, compare_many and publish in the current Blocks."""
    endpoints = (*_before_a_run(actions), *_during_a_run(actions), *_after_a_run(actions))
    for endpoint in endpoints:
        gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=8)


def _before_a_run(actions: Actions) -> tuple[Endpoint, ...]:
    @for_visitor(actions)
    def inspect(acting: Actions, request: dict) -> dict:
        """How a dataset would be trained: format, rows, lengths, findings, sample tokens."""
        parsed = request_from(acting, request)
        return acting.inspect(parsed).model_dump(mode="json")

    @for_visitor(actions)
    def plan(acting: Actions, request: dict) -> dict:
        """Every number fixed with its reason, memory, time and price, without training."""
        parsed = request_from(acting, request)
        return acting.plan(parsed).model_dump(mode="json")

    @for_visitor(actions)
    def start(acting: Actions, request: dict) -> dict:
        """Start a run; answers with its id at once."""
        run = acting.start(request_from(acting, request))
        return {"run_id": run.id}

    return inspect, plan, start


def _during_a_run(actions: Actions) -> tuple[Endpoint, ...]:
    @for_visitor(actions)
    def events(acting: Actions, run_id: str, since: int = 0) -> list[dict]:
        """Events with seq >= since, oldest first."""
        found, _ = read_events(acting.run(run_id).events_file)
        return [event.model_dump(mode="json") for event in found if event.seq >= since]

    @for_visitor(actions)
    def stop(acting: Actions, run_id: str, keep: bool = True) -> dict:
        """Stop a run, keeping its adapter or not."""
        run = acting.run(run_id)
        acting.stop(run, keep)
        return {"run_id": run.id, "status": acting.view(run).status}

    @for_visitor(actions)
    def resume(acting: Actions, run_id: str) -> dict:
        """Continue a run from its newest checkpoint; it is queued while another run has the machine."""
        run = acting.run(run_id)
        acting.resume(run)
        return {"run_id": run.id, "status": acting.view(run).status}

    return events, stop, resume


def _after_a_run(actions: Actions) -> tuple[Endpoint, ...]:
    @for_visitor(actions)
    def compare(
        acting: Actions,
        run_id: str,
        prompt: str,
        system: str = "",
        sampling: dict | None = None,
        options: dict | None = None,
    ) -> Iterator[dict]:
        """Base and adapted answer, streamed: loading, chunk, kept, done. `options`: step, strength."""
        run, chosen = acting.run(run_id), _options(options, sampling)
        for reply in compare_and_keep(
            acting, run, [Question(prompt=prompt, system=system)], chosen
        ):
            yield reply.model_dump(mode="json")

    @for_visitor(actions)
    def compare_many(
        acting: Actions,
        run_id: str,
        questions: list[dict] | None = None,
        sampling: dict | None = None,
        options: dict | None = None,
    ) -> Iterator[dict]:
        """Many prompts as one batch: loading, answered, kept, done with a row for each. `questions`: prompt, and
        system and expected if there are; without them all held-out rows of the run."""
        run, chosen = acting.run(run_id), _options(options, sampling)
        parsed = [parse_values(Question, values) for values in questions or ()]
        asked = parsed or acting.heldout_questions(run)
        for reply in compare_and_keep(acting, run, asked, chosen):
            yield reply.model_dump(mode="json")

    @for_visitor(actions)
    def publish(
        acting: Actions, run_id: str, repo: str, private: bool, options: dict | None = None
    ) -> dict:
        """Push the adapter as one commit and verify it. `options`: for_16_bit, with_base, step, replace."""
        push = parse_values(PushRequest, {**(options or {}), "repo": repo, "private": private})
        return asdict(acting.publish(acting.run(run_id), push))

    return compare, compare_many, publish


def _options(options: dict | None, sampling: dict | None) -> CompareOptions:
    return parse_values(CompareOptions, {**(options or {}), "sampling": sampling or {}})
