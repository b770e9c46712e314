"""Everything a person can do, once: the page, the command line and the API call these methods and nothing below.

`for_visitor` gives the actions of one person: only their runs and uploads exist for it, and only their token is used.
"""

import contextlib
import copy
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from qlora_space import hub
from qlora_space.app import placing
from qlora_space.app.adapters import NamedAdapter, adapter_at, adapter_of_run, check_named_base
from qlora_space.app.compare_requests import replies_to, request_for_adapter, request_for_run
from qlora_space.app.inspections import Inspections
from qlora_space.app.rehearsals import Rehearsals
from qlora_space.app.room import (
    check_free_disk,
    check_room_for_a_run,
    check_room_for_upload,
    when_done,
)
from qlora_space.app.token_owners import TokenOwners
from qlora_space.core.comparison import AS_TRAINED, MOST_QUESTIONS, CompareOptions, Question, Reply
from qlora_space.core.errors import (
    DatasetError,
    HubError,
    QloraSpaceError,
    RequestError,
    RunError,
)
from qlora_space.core.facts import Hardware, ModelFacts
from qlora_space.core.inspection import Inspection
from qlora_space.core.machine import read_hardware
from qlora_space.core.options import DEMO
from qlora_space.core.published_run import PublishedRun
from qlora_space.core.request import TrainingRequest, parse_request, seen_by_inspection
from qlora_space.core.settings import Home, Settings
from qlora_space.core.visitor import ANONYMOUS, LOCAL, THIS_MACHINE, Visitor
from qlora_space.hub.deploy import Deployment, SpaceSettings, deploy, plan_deployment
from qlora_space.hub.publish_run import publish_run
from qlora_space.places.inspector import OF_ONE_PERSON, InspectorLimits, InspectorPool
from qlora_space.places.jobs import JobBackend
from qlora_space.places.local import LocalBackend
from qlora_space.places.service import Service
from qlora_space.places.zero_gpu import ZeroGpuBackend
from qlora_space.plan import Plan, check_startable
from qlora_space.runs import (
    OTHERS_RUN,
    PushRequest,
    Quality,
    QueuePosition,
    RunFolder,
    RunView,
    create_run,
    known_quality,
    queue_positions,
    step_to_resume,
)
from qlora_space.runs.folder import ControlRequest, delete_run, find_run, list_runs, owned_ids

_COMPARE_SECONDS = 900.0  # a large base is downloaded and quantized before its first word
_QUANTIZE_SECONDS = 3600.0  # of a large base on a slow machine
_DOUBLE_CLICK_SECONDS = 2.0  # the same Start within this is one press too many
_RESUME_SECONDS = 30.0


class Actions:
    """One per process, and one for each visitor's request, which shares all but the visitor with it.

    The first is that of this machine's user, or on a Space of nobody. Cheap to make: child processes start at the first
    request to them.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.visitor, self.page = ANONYMOUS if settings.is_space else THIS_MACHINE, ""
        with contextlib.suppress(OSError):  # reported by whoever first writes there
            settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._backend = ZeroGpuBackend() if settings.is_zero_gpu else LocalBackend()
        self.jobs, self._prices = JobBackend(settings.job_code), placing.JobPrices()
        logs = settings.home / "logs"
        limits = InspectorLimits() if settings.is_space else OF_ONE_PERSON
        self._inspector = InspectorPool(logs, limits)
        self._comparer = Service("compare", logs, _COMPARE_SECONDS, str(settings.runs_folder))
        self._quantizer = Service("quantize", logs, _QUANTIZE_SECONDS)
        self._starting = threading.Lock()
        self._last_starts: dict[str, tuple[float, TrainingRequest, RunFolder]] = {}  # by owner
        self._token_owners = TokenOwners()
        self._rehearsals = Rehearsals()
        self._inspections = Inspections()
        self._adapters: dict[tuple[str, ...], NamedAdapter] = {}  # the last one

    def for_visitor(self, visitor: Visitor, page: str = "") -> Self:
        """What that person can do: runs and uploads of others do not exist. A newer inspection of the same `page` ends
        the older one."""
        theirs = copy.copy(self)
        theirs.visitor, theirs.page = visitor, page
        return theirs

    def visitor_with_token(self, token: str) -> Visitor:
        """Whose token a program passes. Raises RequestError for an unknown one, HubError if the Hub does not answer."""
        return self._token_owners.visitor(token)

    def warm_up(self) -> None:
        """Start the inspector and let it read the demo: the first visitor does not wait for it. Raises BackendError."""
        self._backend.announce()
        self._inspector.warm_up()
        threading.Thread(target=self._inspect_demo, daemon=True).start()

    def _inspect_demo(self) -> None:
        with contextlib.suppress(QloraSpaceError):  # a visitor who asks for it sees why
            self.inspect(TrainingRequest())

    def close(self) -> None:
        self._inspector.close()
        self._comparer.close()
        self._quantizer.close()

    def hardware(self) -> Hardware:
        return self._backend.hardware(self.settings.home)

    @property
    def token(self) -> str | None:
        """The visitor's token; for this machine's user its own login."""
        return self.visitor.token or (hub.local_token() if self._is_local else None)

    @property
    def _is_local(self) -> bool:
        return self.visitor.subject == LOCAL

    @property
    def may_start(self) -> bool:
        """Whether this visitor may start runs, upload, and read more than the demo."""
        return not self.visitor.is_anonymous

    def check_upload(self, num_bytes: int | None) -> None:
        """Before a file of that size is taken; None if the browser does not say. Raises QloraSpaceError."""
        self._check_signed_in("upload a file")
        if self._is_local:
            return
        check_free_disk(self.hardware(), self.settings.limits)
        check_room_for_upload(self.uploads_folder, num_bytes or 0, self.settings.limits)

    @property
    def uploads_folder(self) -> Path:
        """For the files of this visitor."""
        return Home(self.settings.home).uploads_folder(self.visitor.subject)

    def read_account(self) -> hub.Account | None:
        """Who is signed in; None if nobody is. Raises HubError if the Hub does not answer."""
        return hub.read_account(self.token)

    def account(self) -> hub.Account | None:
        """Who is signed in; None if nobody is, or if the Hub does not answer."""
        try:
            return self.read_account()
        except HubError:  # without a network the page is as useful as without an account
            return None

    def search_bases(self, text: str) -> list[hub.ModelHit]:
        self._check_signed_in("search the Hub")
        return hub.search_models(text, self.token)

    def search_datasets(self, text: str) -> list[str]:
        self._check_signed_in("search the Hub")
        return [hit.id for hit in hub.search_datasets(text, self.token)]

    def base_facts(self, request: TrainingRequest) -> ModelFacts:
        if request.base == DEMO:  # our own file: the page need not wait for the inspector's start
            return hub.model_facts(DEMO, None, None)
        self._check_base(request)
        message = {"request": request.model_dump(mode="json"), "token": self.token}
        reply, *_ = self._inspector.ask(message, self.visitor.subject, self.page)
        return ModelFacts.model_validate(reply)

    def inspect(self, request: TrainingRequest) -> Inspection:
        """Read rows, find the format, render and tokenize samples. Raises QloraSpaceError."""
        return self._inspected(request)[1]

    def plan(self, request: TrainingRequest) -> Plan:
        """Every number of the run with its reason; starts nothing. Raises QloraSpaceError."""
        base, inspection = self._inspected(request)
        if unknown := inspection.unknown_format:
            raise DatasetError(unknown.message, unknown.fix)
        start = self._adapter(request)
        plan = self._surroundings().plan(request, base, inspection, start and start.facts)
        publishing = self._rehearsals.of(request, self.token)
        return plan.model_copy(update={"publishing": publishing})

    def quality(self, base_sha: str) -> list[Quality]:
        """Quality of this base at low bits, as far as it was measured on this machine."""
        return known_quality(self.settings.quantized_folder, base_sha)

    def quantize(self, request: TrainingRequest, folder: Path | None = None) -> Iterator[Quality]:
        """Quantize the base and measure it on general text; quick if done before. `folder`: a new one, which gets it in
        GPTQ's format. Raises QloraSpaceError."""
        self._check_signed_in("measure a base")
        base = self.base_facts(request)
        message = {
            "request": request.model_dump(mode="json"),
            "base": base.model_dump(mode="json"),
            "hardware": read_hardware(self.settings.home).model_dump(mode="json"),
            "quantized_folder": str(self.settings.quantized_folder),
            "folder": str(folder.absolute()) if folder else "",
            "token": self.token,
        }
        for reply in self._quantizer.ask(message):
            yield Quality.model_validate(reply)

    def start(
        self, request: TrainingRequest, origin: str = "", *, keeps_copy: bool = False
    ) -> RunFolder:
        """Check everything that can be checked beforehand, then start a run that outlives this process.

        It is queued while another run has the machine. A double click starts one run. `origin`: id of the run whose
        settings these were; `keeps_copy`: in a new private repository of the visitor. Raises QloraSpaceError.
        """
        self._check_signed_in("start a run")
        owner = self.visitor.subject
        with self._starting:
            if owner in self._last_starts:
                pressed_at, before, run = self._last_starts[owner]
                if before == request and time.monotonic() - pressed_at < _DOUBLE_CLICK_SECONDS:
                    return run
            copied = placing.copied_to(self.visitor.name, request) if keeps_copy else request
            run = self._start(copied, origin)
            self._last_starts[owner] = (time.monotonic(), request, run)
        return run

    def _start(self, request: TrainingRequest, origin: str) -> RunFolder:
        run = self.make(request, origin)
        try:
            (self.jobs if request.place == "job" else self._backend).start(run, self.token)
        except QloraSpaceError:
            delete_run(run)
            raise
        self.keep_going(run)
        return run

    def make(self, request: TrainingRequest, origin: str = "") -> RunFolder:
        """A run with all that can be checked, which nothing has started yet. Raises QloraSpaceError."""
        self._rehearsals.forget(self.token)
        request = placing.with_copy(request, self.visitor, self.token)
        if request.mirror_to:
            hub.check_can_mirror(request.mirror_to, self.token)
        if origin and not self.owns(origin):
            origin = ""
        unhurried = self.for_visitor(self.visitor)  # what is typed meanwhile does not end it
        plan = unhurried.plan(request)
        check_startable(request, plan, unhurried._inspected(request)[1])
        self._check_room_for_a_run()
        runs_folder, owner = self.settings.runs_folder, self.visitor.subject
        start = unhurried._adapter(request)
        return create_run(
            runs_folder, request, plan, owner=owner, origin=origin, start=start and start.folder
        )

    def resume(self, run: RunFolder, moved: TrainingRequest | None = None) -> None:
        """Queue the run to continue from its newest valid checkpoint, or the start; where `moved` says, whose other
        fields do not count. Raises RunError if it cannot, and QloraSpaceError for a place that cannot take it."""
        run = self.run(run.id)
        view = self.view(run)
        if step_to_resume(run, view) is None:
            why = "it is done, or was discarded." if view.is_over else "it is still running."
            raise RunError(f"This run cannot be resumed: {why}", "Start a new one like it.")
        there = moved or run.request()
        if moved is not None or there.place == "job":  # at the prices of today
            placing.move(run, there, self._surroundings(), self.visitor, self.token)
        (self.jobs if there.place == "job" else self._backend).start(run, self.token)
        self.keep_going(run)
        deadline = time.monotonic() + _RESUME_SECONDS
        while self.view(run).attempts == view.attempts and time.monotonic() < deadline:
            time.sleep(0.1)

    def keep_going(self, run: RunFolder) -> None:
        """A page of the run is open: where GPUs are lent, this visitor's quota pays for its next slice."""
        self._backend.keep_going(self.run(run.id), self.visitor.gpu_token)

    def renew_sign_in(self) -> None:
        """Hand the visitor's token to the workers of their runs: the one those have may have ended."""
        mine = owned_ids(self.settings.runs_folder, self.visitor.subject)
        self._backend.renew_token(mine, self.token)
        self.jobs.renew_token(mine, self.token)

    def fetch(self, repo: str) -> RunFolder:
        """Download the copy of a run from the Hub; `resume` continues it."""
        self._check_signed_in("fetch a run")
        return hub.fetch_copy(repo, self.settings.runs_folder, self.token, self.visitor.subject)

    def rename(self, run: RunFolder, name: str) -> None:
        self.run(run.id).rename(name)

    def send_control_request(self, run: RunFolder, request: ControlRequest) -> None:
        """Save or sample after the current step. Raises RunError if the run is not training."""
        run = self.run(run.id)
        if self.view(run).status != "training":
            raise RunError("This run is not training now.", "Wait until it does.")
        run.ask_for(request)

    def owns(self, run_id: str) -> bool:
        return run_id in owned_ids(self.settings.runs_folder, self.visitor.subject)

    def run(self, run_id: str) -> RunFolder:
        """Raises RunError for an unknown id. One of somebody else is unknown, in the same words and as quickly."""
        return find_run(self.settings.runs_folder, run_id, self.visitor.subject)

    def runs(self) -> list[tuple[RunFolder, RunView]]:
        """This visitor's runs, newest first, each with what happened in it."""
        mine = owned_ids(self.settings.runs_folder, self.visitor.subject)
        listed = list_runs(self.settings.runs_folder)
        return [(run, self.view(run)) for run in listed if run.id in mine]

    def view(self, run: RunFolder) -> RunView:
        return (self.jobs if run.is_in_job else self._backend).view(run)

    def queue_positions(self) -> dict[str, QueuePosition]:
        """Of this visitor's runs that wait for this machine, by id. Runs of others count, and have no name."""
        mine = owned_ids(self.settings.runs_folder, self.visitor.subject)
        found = queue_positions(placing.here(self._all_runs()), time.time(), mine)
        return {run_id: position for run_id, position in found.items() if run_id in mine}

    def busy_name(self) -> str:
        """Name of the run that has this machine now, if it is this visitor's; '' if none has it."""
        busy = self._busy_run()
        if busy is None:
            return ""
        return busy.name() if self.owns(busy.id) else OTHERS_RUN

    def _all_runs(self) -> list[tuple[RunFolder, RunView]]:
        return [(run, self.view(run)) for run in list_runs(self.settings.runs_folder)]

    def _busy_run(self) -> RunFolder | None:
        runs = [] if self.settings.is_zero_gpu else placing.here(self._all_runs())  # one GPU each
        live = [(run, view) for run, view in runs if not view.is_over]
        return next((run for run, view in reversed(live) if view.status != "queued"), None)

    def stop(self, run: RunFolder, keep: bool) -> None:
        """`keep` saves the adapter as it is; otherwise nothing is kept. Raises RunError if it is over."""
        run = self.run(run.id)
        if self.view(run).is_over:
            raise RunError("This run is over already.", "Nothing needs to be stopped.")
        if run.is_in_job:
            self.jobs.attach(run, self.token)
        (self.jobs if run.is_in_job else self._backend).stop(run, keep)

    def delete(self, run: RunFolder) -> None:
        run = self.run(run.id)
        if not self.view(run).is_over:
            raise RunError("This run is still running.", "Stop it first.")
        delete_run(run)

    def heldout_questions(self, run: RunFolder, count: int = MOST_QUESTIONS) -> list[Question]:
        """The first rows that the run was not trained on."""
        return self.run(run.id).heldout_questions(count)

    def compare(
        self,
        run: RunFolder,
        questions: Sequence[Question],
        options: CompareOptions = AS_TRAINED,
        others: Sequence[Path] = (),
    ) -> Iterator[Reply]:
        """The base, the run's adapter and `others` on the same base answer together. Raises QloraSpaceError."""
        request = request_for_run(self.run(run.id), questions, options, others)
        return replies_to(request, self._comparer, self.token, self.visitor.gpu_token)

    def compare_adapter(
        self,
        adapter: str,
        questions: Sequence[Question],
        options: CompareOptions = AS_TRAINED,
        *,
        revision: str = "",
        on_base: str = "",
    ) -> Iterator[Reply]:
        """The same for an adapter from the Hub or a folder, with the base it names, which `on_base` has to be."""
        facts = (named := self.read_adapter(adapter, "compare an adapter", revision)).facts
        check_named_base(adapter, facts, on_base)
        asked = {"base": facts.base, "base_revision": facts.base_revision or None}
        base = self.for_visitor(self.visitor).base_facts(parse_request(asked))
        packed = self.settings.quantized_folder
        request = request_for_adapter(named.folder, facts.recipe, base, questions, options, packed)
        return replies_to(request, self._comparer, self.token, self.visitor.gpu_token)

    def read_adapter(self, name: str, to: str, revision: str = "") -> NamedAdapter:
        """On the Hub, by default the newest commit, or in a folder; `to` says what for. Raises QloraSpaceError."""
        self._check_signed_in(to)
        self._check_source(name, "adapter")
        return adapter_at(name, self.token, self._ask_inspector, revision)

    def published_run(self, repo: str) -> PublishedRun:
        """The settings of the run that somebody published there. Raises QloraSpaceError."""
        self._check_signed_in("read a run from the Hub")
        file = hub.fetch_record(repo.strip(), self.token).resolve()
        return PublishedRun.model_validate(
            self._ask_inspector({"record": repo.strip(), "file": str(file)})
        )

    def _ask_inspector(self, message: dict[str, Any]) -> dict[str, Any]:
        reply, *_ = self._inspector.ask(message, self.visitor.subject)
        return reply

    def _adapter(self, request: TrainingRequest) -> NamedAdapter | None:
        """What training goes on from, read once for a page's keystrokes. Raises QloraSpaceError."""
        name = request.adapter
        if not name:
            return None
        run = self.run(name) if self.owns(name) else None
        source = str(run.adapter_after(None)) if run else name
        key = (source, self.visitor.subject, self.token or "")
        if key not in self._adapters:
            read = self.read_adapter
            found = adapter_of_run(run, self._ask_inspector) if run else read(name, "go on from it")
            self._adapters.clear()
            self._adapters[key] = found
        return self._adapters[key]

    def read_target(self, run: RunFolder, repo: str) -> hub.Target:
        """What publishing the run there would meet. Raises HubError if the Hub does not answer."""
        return hub.read_target(repo, self.run(run.id).id, self.token)

    def publish(self, run: RunFolder, push: PushRequest, *, is_kept: bool = True) -> hub.Published:
        """Push the adapter with its card as one commit and read it back; a push that is kept is sent again later if the
        Hub does not answer. Raises QloraSpaceError."""
        return publish_run(self.run(run.id), push, self.token, is_kept=is_kept)

    def plan_deployment(self, repo: str, settings: SpaceSettings) -> Deployment:
        """What `deploy` would do; nothing is written. Raises QloraSpaceError."""
        self._check_signed_in("make a Space of your own")
        return plan_deployment(repo, settings, self.token)

    def deploy(
        self, repo: str, settings: SpaceSettings, progress: Callable[[str], object]
    ) -> Deployment:
        """Put this app on a Space, or update it; `progress` gets each change. Raises QloraSpaceError."""
        self._check_signed_in("make a Space of your own")
        return deploy(repo, settings, self.token, progress)

    def _inspected(self, request: TrainingRequest) -> tuple[ModelFacts, Inspection]:
        """Facts and inspection, cached: the page asks for the same again with every keystroke."""
        fields = json.dumps(seen_by_inspection(request), sort_keys=True)
        device = placing.device_for(request, self.hardware())
        key = (fields, self.visitor.subject, self.token or "", device)
        return self._inspections.of(key, lambda: self._inspect(request, device))

    def _inspect(self, request: TrainingRequest, device: str) -> list[dict[str, Any]]:
        self._check_source(request.dataset, "dataset")
        if request.dataset != DEMO:
            self._check_signed_in("read a dataset")
        self._check_base(request)
        message = {
            "request": request.model_dump(mode="json"),
            "token": self.token,
            "allow_local": True,
            "device": device,
        }
        return self._inspector.ask(message, self.visitor.subject, self.page)

    def _surroundings(self) -> placing.Surroundings:
        """This machine as a queued run will find it, when the one that trains now is done; and prices, which are asked
        for where somebody could use them."""
        hardware, busy = self.hardware(), self._busy_run()
        free = when_done(hardware, busy.plan(), self.view(busy)) if busy else hardware
        asks = self.settings.is_space or self.token is not None
        machines = self._prices.machines() if asks else ()
        return placing.Surroundings(free, machines, self.visitor.expires_at)

    def _check_source(self, value: str, field: str) -> None:
        """On a Space anybody types into the boxes: of this machine's disk only their own uploads are read."""
        path = Path(value)
        if self._is_local or value == DEMO or not path.exists():
            return
        if self.uploads_folder not in path.resolve().parents:
            raise RequestError(
                f"{field} is {value[:80]!r}, a path on the server.",
                "Upload the file, or give a Hub id.",
            )

    def _check_room_for_a_run(self) -> None:
        """Raises RunError or DiskFull where a visitor, or all together, have as many as the Space's owner allows."""
        if self._is_local:
            return
        check_free_disk(self.hardware(), self.settings.limits)
        live = [run for run, view in self._all_runs() if not view.is_over]
        check_room_for_a_run([self.owns(run.id) for run in live], self.settings.limits)

    def _check_base(self, request: TrainingRequest) -> None:
        self._check_source(request.base, "base")
        if request.base != DEMO:
            self._check_signed_in("use a base from the Hub")

    def _check_signed_in(self, what: str) -> None:
        """Raises RequestError for nobody: anonymous visitors of a Space see the demo."""
        if self.visitor.is_anonymous:
            raise RequestError(f"Sign in to {what}.", "Use “Sign in” at the top of the page.")
