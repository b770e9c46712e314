"""Where a run runs: what each place would cost at the prices of the day, and which one was asked for."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_space import hub
from qlora_space.core.adapter_facts import AdapterFacts
from qlora_space.core.errors import HubError, QloraSpaceError, RequestError
from qlora_space.core.facts import Hardware, ModelFacts
from qlora_space.core.inspection import Inspection
from qlora_space.core.places import Flavor, PlaceOffer
from qlora_space.core.request import TrainingRequest
from qlora_space.core.visitor import Visitor
from qlora_space.hub.jobs import job_flavors, may_run_jobs
from qlora_space.plan import Plan, as_planned, chosen_job, moved, offers, resolve
from qlora_space.runs import RunFolder, RunView

_KEPT_SECONDS, _FAILED_SECONDS = 600.0, 30.0
_PATIENCE_SECONDS = 3.0  # of who types into the form
_BEFORE_SIGN_IN_ENDS = 600.0  # to save, and to bring the copy up to date
PlanAt = Callable[[Hardware], Plan]


class JobPrices:
    """The machines of HF Jobs, asked for once in ten minutes; the same for everybody."""

    def __init__(self, ask: Callable[[str | None], tuple[Flavor, ...]] = job_flavors) -> None:
        self._ask = ask
        self._machines: tuple[Flavor, ...] = ()
        self._until = 0.0
        self._asking = threading.Lock()

    def machines(self) -> tuple[Flavor, ...]:
        """Those that were known last while the Hub does not answer; none if it never did."""
        if time.monotonic() > self._until:
            asking = threading.Thread(target=self._read, daemon=True)
            asking.start()
            asking.join(_PATIENCE_SECONDS)
        return self._machines

    def _read(self) -> None:
        with self._asking:
            if time.monotonic() <= self._until:
                return
            try:
                self._machines = self._ask(None)
                self._until = time.monotonic() + _KEPT_SECONDS
            except QloraSpaceError:  # the page is as useful without
                self._until = time.monotonic() + _FAILED_SECONDS


@dataclass(frozen=True)
class Surroundings:
    """What there is to run on: this machine, and the machines of HF Jobs for a sign-in that ends at some time."""

    here: Hardware
    machines: Sequence[Flavor]
    sign_in_ends_at: float | None = None

    def plan(
        self,
        request: TrainingRequest,
        base: ModelFacts,
        inspection: Inspection,
        start: AdapterFacts | None,
    ) -> Plan:
        """Of a new run. Raises QloraSpaceError."""

        def plan_at(hardware: Hardware) -> Plan:
            return resolve(
                request,
                base,
                inspection.dataset,
                hardware,
                eval_split=inspection.eval_split,
                columns=inspection.mapping,
                instruction=inspection.instruction,
                start=start,
            )

        return self._placed(request, plan_at)

    def _placed(self, request: TrainingRequest, plan_at: PlanAt) -> Plan:
        """For the place that the request asks for, with all that there are. Raises QloraSpaceError."""
        plan = plan_at(self.here)
        found = offers(request, plan, self.machines, plan_at)
        if request.place == "here":
            return plan.model_copy(update={"places": found})
        offer = self._within_sign_in(chosen_job(request, found))
        return plan_at(offer.hardware).model_copy(update={"offer": offer, "places": found})

    def move(self, run: RunFolder, request: TrainingRequest) -> Plan:
        """The plan of a run that goes on where the request asks. Raises QloraSpaceError."""
        before, kept = run.plan(), as_planned(request, run.plan())

        def plan_at(hardware: Hardware) -> Plan:
            return resolve(
                kept,
                before.base,
                before.dataset,
                hardware,
                eval_split=before.eval_split,
                columns=before.columns,
                instruction=before.instruction,
                start=before.start,
            )

        return moved(before, self._placed(kept, plan_at))

    def _within_sign_in(self, offer: PlaceOffer) -> PlaceOffer:
        """A job has the token that it was given: it ends before that does, and goes on with the next one."""
        if self.sign_in_ends_at is None:
            return offer
        left = int(self.sign_in_ends_at - time.time() - _BEFORE_SIGN_IN_ENDS)
        if left < _BEFORE_SIGN_IN_ENDS:
            raise RequestError("Your sign-in ends too soon for a job.", "Sign out and in again.")
        return offer.model_copy(update={"timeout_seconds": min(offer.timeout_seconds, left)})


def here(runs: Sequence[tuple[RunFolder, RunView]]) -> list[tuple[RunFolder, RunView]]:
    """Those that are in no job."""
    return [(run, view) for run, view in runs if not run.is_in_job]


def device_for(request: TrainingRequest, here: Hardware) -> Literal["cpu", "cuda"]:
    """On which its data is looked at: the machine of a job is chosen later."""
    if request.place == "here":
        return here.device
    return "cpu" if (request.flavor or "").startswith("cpu-") else "cuda"


def move(
    run: RunFolder,
    there: TrainingRequest,
    surroundings: Surroundings,
    visitor: Visitor,
    token: str | None,
) -> None:
    """Plan the run for the place of that other request, of which nothing else counts. Raises QloraSpaceError."""
    update = {name: getattr(there, name) for name in ("place", "flavor", "max_usd")}
    request = with_copy(run.request().model_copy(update=update), visitor, token)
    run.move(request, surroundings.move(run, request))


def with_copy(request: TrainingRequest, visitor: Visitor, token: str | None) -> TrainingRequest:
    """A run in a job has a copy, through which it comes back. Raises HubError or RequestError where this visitor
    cannot run jobs."""
    if request.place == "here":
        return request
    if not may_run_jobs(visitor.scope):
        raise RequestError(
            "Your sign-in does not include HF Jobs (the scope “jobs”).",
            "Sign out and in again, and allow it.",
        )
    name = visitor.name or _account_name(token)
    repo = request.mirror_to
    if repo and repo.partition("/")[0] != name:
        raise RequestError(
            f"mirror_to is {repo[:100]!r}, but the job is started and paid by {name}.",
            f"Leave it out, or name a repository of {name}.",
        )
    return copied_to(name, request)


def _account_name(token: str | None) -> str:
    account = hub.read_account(token)
    if account is None:
        raise HubError("A job needs your sign-in.", "Sign in to the Hub and try again.")
    return account.name


def copied_to(account: str, request: TrainingRequest) -> TrainingRequest:
    """With a copy in a new private repository of the account, unless the request names one."""
    repo = request.mirror_to or hub.mirror_name(account, request.name or "run")
    return request.model_copy(update={"mirror_to": repo})
