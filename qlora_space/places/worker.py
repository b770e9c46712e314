"""The process that does the heavy work: `python -m qlora_space.places.worker`, with one of

    train RUN_FOLDER [--token-on-stdin | --deadline-seconds N | --in-job DEADLINE_SECONDS]
    slices RUN_FOLDER ASKS_PIPE     lent-gpu     follow-job RUN_FOLDER
    compare RUNS_FOLDER     quantize     export     prove
    inspect CONTROL_SOCKET

`train` writes events.jsonl, and any exception becomes one `failed` event; in a job its attempt was begun by who
submitted it, and the token is on stdin. `follow-job` follows such a run from here (job_follower.py). Where torchrun or
its like starts `train` several times, one process is that worker and the others compute gradients for it
(train/data_parallel.py). `slices` is `train` on a Space with ZeroGPU (sliced_run.py), with the token on stdin;
`lent-gpu` reports to the platform and says what it lends, as JSON. `compare`, `quantize`, `export` and `prove` read one
JSON request a line from stdin and write JSON replies to stdout. `inspect` has a child for each request (zygote.py).
"""

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel

from qlora_space.core.atomic import whole_folder
from qlora_space.core.comparison import CompareRequest
from qlora_space.core.confinement import die_with_parent
from qlora_space.core.errors import HubUnavailable, NotSignedIn, QloraSpaceError
from qlora_space.core.events import (
    TERMINAL_KINDS,
    Cancelled,
    Event,
    Note,
    Paused,
    Phase,
    Started,
)
from qlora_space.core.export import ExportOptions
from qlora_space.core.facts import Hardware, ModelFacts
from qlora_space.core.interruption import Interrupted, Interruption, Why
from qlora_space.core.launch import Launch, take_launch
from qlora_space.core.logs import log_to_stderr
from qlora_space.core.machine import take_first_gpu, take_gpu
from qlora_space.core.processes import start_time
from qlora_space.core.proof import Proof
from qlora_space.core.request import TrainingRequest
from qlora_space.core.settings import is_zero_gpu
from qlora_space.hub import Mirror
from qlora_space.hub.publish_run import kept_proof, publish_run
from qlora_space.places.job_follower import follow_job
from qlora_space.places.owner_token import OwnerToken
from qlora_space.places.replies import Answer, Message, failure_of, imports, write_replies
from qlora_space.places.sliced_run import Ending, SliceAsks, SlicedRun, SliceWork
from qlora_space.runs import (
    EventLog,
    PushRequest,
    QueueSlot,
    RunFolder,
    is_machine_free,
    own_run,
    view_of,
)

_USAGE = "train RUN_FOLDER [--token-on-stdin | --deadline-seconds N] | compare RUNS_FOLDER | quantize | export | prove"
log = logging.getLogger("qlora_space.places.worker")
_PAUSED = 75  # EX_TEMPFAIL: start it again to go on


def main(arguments: list[str]) -> int:
    launch = take_launch(os.environ)
    _set_up(arguments)
    return _run(arguments, launch)


def _set_up(arguments: list[str]) -> None:
    log_to_stderr(logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    for client in ("httpx", "httpx2"):  # they log addresses, and those of private files are signed
        logging.getLogger(client).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # A run takes its GPUs when it is its turn in the queue.
    if arguments[:1] not in (["train"], ["slices"], ["follow-job"]):
        take_first_gpu()
    # A run outlives its server, these do not.
    if arguments[:1] in (["compare"], ["quantize"], ["export"], ["prove"]):
        die_with_parent(os.getppid())


def _run(arguments: list[str], launch: Launch | None) -> int:
    match arguments:
        case ["train", folder]:
            return _train_as(launch, RunFolder(Path(folder)))
        case ["train", folder, "--token-on-stdin"]:
            return _train(RunFolder(Path(folder)), token=OwnerToken.from_stdin())
        case ["train", folder, "--in-job", seconds]:
            return _train(
                RunFolder(Path(folder)),
                token=OwnerToken.from_stdin(),
                deadline_seconds=float(seconds),
                is_begun=True,
            )
        case ["follow-job", folder, "--token-on-stdin"]:
            return follow_job(RunFolder(Path(folder)), OwnerToken.from_stdin())
        case ["train", folder, "--deadline-seconds", seconds]:
            return _train(RunFolder(Path(folder)), deadline_seconds=float(seconds))
        case ["slices", folder, pipe]:
            asks = SliceAsks(int(pipe))
            return _train(RunFolder(Path(folder)), token=OwnerToken.from_stdin(), asks=asks)
        case ["lent-gpu"]:
            return _lent_gpu()
        case ["inspect", control]:
            from qlora_space.places.zygote import serve_inspections

            return serve_inspections(int(control))
        case ["compare", runs_folder]:
            return _serve(_comparer(Path(runs_folder)))
        case [("quantize" | "export" | "prove") as name]:
            made = {"quantize": _quantizer, "export": _exporter, "prove": _prover}
            return _serve(made[name]())
    raise SystemExit(f"usage: python -m qlora_space.places.worker {_USAGE}")


def _train(
    run: RunFolder,
    *,
    token: OwnerToken | None = None,
    deadline_seconds: float | None = None,
    launch: Launch | None = None,
    is_begun: bool = False,
    asks: SliceAsks | None = None,
) -> int:
    """Run one attempt, which `is_begun` if its first event is written; in slices if somebody `asks` for each.

    The deadline counts from the start of the process. Exit 75 (EX_TEMPFAIL): paused, can go on.
    """
    lock = own_run(run)
    if lock is None:
        log.warning("Another worker has this run.")
        return 0
    token = token or OwnerToken()
    events, slot, mirror = EventLog(run.events_file), QueueSlot(run), None
    interruption = Interruption()

    def emit(event: Event) -> Event:
        with interruption.held():  # no line is ever cut off in the middle
            return events.append(event)

    # Ctrl-C in a terminal reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        started_at = psutil.Process().create_time()
        interruption.listen(started_at + deadline_seconds if deadline_seconds else None)
        events.start_heartbeats()
        if not is_begun:
            emit(_started(run))
        if asks is None and not slot.wait(
            emit, events.heartbeat, lambda: run.stop_request() is not None
        ):
            emit(_left_the_queue(run, run.resume_step() or 0))
            return 0
        mirror = _mirror_if_asked(run, events, token)
        attempt = _Attempt(run, emit, events.heartbeat, interruption, token)
        ending = _train_in_slices(attempt, asks) if asks else _train_at_once(attempt, launch)
        if ending.kind == "finished":
            _publish_if_asked(run, emit, token.newest)
        emit(ending)
        return _exit_status(ending)
    except Interrupted as interrupted:  # before or after train(), which reports its own
        with contextlib.suppress(Interrupted), interruption.held():
            return _end_interrupted(run, events, interrupted.why)
        return _PAUSED
    except BaseException as error:  # the boundary: whatever happened becomes one event
        emit(failure_of(error))
        return 1
    finally:
        events.close()
        slot.close()
        lock.close()
        if mirror is not None:  # after all others may go on
            with contextlib.suppress(Interrupted):
                mirror.close()


def _take_gpus(launch: Launch | None) -> tuple[str, ...]:
    """Returns the further ones that this process may start others on."""
    if launch is None:
        return take_first_gpu()
    take_gpu(launch.local_rank)
    return ()


def _train_as(launch: Launch | None, run: RunFolder) -> int:
    """The worker of the run, or one of the others that a launcher started."""
    if launch is None:
        return _train(run)
    if launch.rank > 0:
        return _serve_rank_0(run, launch)
    try:
        return _train(run, launch=launch)
    finally:
        _end_others(launch)


def _end_others(launch: Launch) -> None:
    """Also those that were given no order: the run was another worker's, or had left the queue."""
    from qlora_space.train.between_ranks import ENDED, LATEST_SECONDS, serve_store

    with contextlib.suppress(
        RuntimeError
    ):  # this process serves the store already, and has ended them
        store = serve_store(launch)
        store.set(ENDED, "")
        if not launch.agent_serves_store:
            time.sleep(LATEST_SECONDS)


def _serve_rank_0(run: RunFolder, launch: Launch) -> int:
    """A further process of a run, which computes gradients for its worker."""
    take_gpu(launch.local_rank)
    with imports():
        from qlora_space.train.other_rank import serve_rank_0

    return serve_rank_0(run, launch)


@dataclass(frozen=True)
class _Attempt:
    """What training needs of its process."""

    run: RunFolder
    emit: Callable[[Event], Event]
    heartbeat: Callable[[], None]
    interruption: Interruption
    token: OwnerToken


def _train_at_once(attempt: _Attempt, launch: Launch | None) -> Ending:
    other_gpus = _take_gpus(launch)
    with imports():  # torch takes seconds; Started must not wait for it
        from qlora_space.train import train

    return train(
        attempt.run,
        attempt.emit,
        attempt.token.newest,
        attempt.interruption,
        attempt.heartbeat,
        other_gpus,
        launch,
    )


def _train_in_slices(attempt: _Attempt, asks: SliceAsks) -> Ending:
    """It takes no turn in the queue: each slice has a GPU of its own."""
    with imports():  # all that a slice needs: what is forked for it has it
        from qlora_space.places import gpu_functions, platform
        from qlora_space.train.slices import prepare_for_slices
    run, emit, interruption = attempt.run, attempt.emit, attempt.interruption
    prepare_for_slices(run, emit, attempt.token.newest, interruption)
    work = SliceWork(gpu_functions.train_slice, platform.paid_by, platform.duration_factor())
    return SlicedRun(
        run, emit, attempt.heartbeat, interruption, asks, attempt.token, work
    ).execute()


def _lent_gpu() -> int:
    from qlora_space.places.platform import announce

    sys.stdout.write(announce().model_dump_json() + "\n")
    return 0


def _started(run: RunFolder) -> Started:
    return Started(
        place=run.plan().device_label,
        pid=os.getpid(),
        pid_start_time=start_time(os.getpid()),
        resume_step=run.resume_step() or 0,
    )


def _end_interrupted(run: RunFolder, events: EventLog, why: Why) -> int:
    """Report that the run is paused, unless its end was reported already."""
    last = events.last
    if last and last.kind in TERMINAL_KINDS:
        return _exit_status(last)
    # An attempt that reported nothing needs no end either.
    if last or not view_of(run).is_over:
        events.append(Paused(step=run.resume_step() or 0, why=why))
    return _PAUSED


def _mirror_if_asked(run: RunFolder, events: EventLog, token: OwnerToken) -> Mirror | None:
    repo = run.request().mirror_to
    if not repo:
        return None

    def note(text: str, is_warning: bool) -> None:
        if events.last is not None and events.last.kind not in TERMINAL_KINDS:
            events.append(Note(level="warning" if is_warning else "info", text=text))

    mirror = Mirror(run, repo, token.newest, note)
    token.tell(mirror.renew_token)
    return mirror


def _exit_status(ending: Event) -> int:
    return _PAUSED if ending.kind == "paused" else 0


def _left_the_queue(run: RunFolder, step: int) -> Event:
    """Stopped while it waited: a run that has learned something can be resumed, any other is over."""
    if run.has_adapter or (step and run.stop_request() == "keep"):
        return Paused(step=step, why="signal")
    run.discard()
    return Cancelled(step=0)


def _publish_if_asked(run: RunFolder, emit: Callable[[Event], object], token: str | None) -> None:
    """A push that fails takes nothing from a run that succeeded: it is reported and can be tried again."""
    request = run.request()
    if not request.hub_model_id:
        return
    emit(Phase(name="publish", done=0, total=2))
    try:
        push = PushRequest(
            repo=request.hub_model_id,
            private=request.hub_private_repo,
            with_base=run.plan().base_is_own,
        )
        done = publish_run(run, push, token)
        emit(Note(level="info", text=f"Published and verified: {done.url}"))
        emit(Phase(name="publish", done=1, total=2))
        if is_zero_gpu():  # no GPU is lent for it, and this process believes that it has one
            emit(Note(level="info", text="Prove what was published from the Publish page."))
        else:
            emit(_proved(run, done.repo, done.commit, token))
    except (HubUnavailable, NotSignedIn) as error:
        text = f"The adapter is not published yet: {error} It is safe here, and will be sent again."
        emit(Note(level="warning", text=text))
    except QloraSpaceError as error:
        text = f"The adapter was not published: {error} It is safe here: publish again from the Publish page."
        emit(Note(level="error", text=text))


def _proved(run: RunFolder, repo: str, commit: str, token: str | None) -> Note:
    """What was published is downloaded again and compared. Whatever keeps it from being proved, also an interruption,
    takes nothing from a run that is done."""
    from qlora_space.model.proof import PublishedAs, prove

    try:
        *_, found = prove(run, PublishedAs(repo, commit), token)
        assert isinstance(found, Proof)
        proof = kept_proof(run, found, token)
    except (Exception, Interrupted) as error:
        log.exception("What was published is not proved.")
        why = str(error) if isinstance(error, QloraSpaceError) else "it was broken off."
        text = f"What was published is not proved yet: {why} Prove it from the Publish page."
        return Note(level="warning", text=text)
    return Note(level="info" if proof.is_proved else "error", text=proof.in_words())


def _serve(answer: Answer) -> int:
    """Answer requests until stdin closes. Every answer ends with {"end": true}."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not get between the replies
    for line in sys.stdin:
        with contextlib.suppress(BrokenPipeError):
            write_replies(answer, json.loads(line), replies.write)
    return 0


def _comparer(runs_folder: Path) -> Answer:
    """{"request", "token", "gpu_token"} -> Replies."""
    if is_zero_gpu():
        from qlora_space.places.lent_compare import compare_on_lent_gpu

        return compare_on_lent_gpu
    with imports():
        from qlora_space.generate.resident import ResidentModel

    resident = ResidentModel()
    resident.unload_when(lambda: not is_machine_free(runs_folder))
    return lambda message: resident.compare(
        CompareRequest.model_validate(message["request"]), message["token"]
    )


def _quantizer() -> Answer:
    """{"request", "base", "hardware", "quantized_folder", "token"} -> one Quality. With "folder", the base is written
    into it in GPTQ's format."""
    with imports():
        from qlora_space.model.gptq import write_gptq_base
        from qlora_space.model.measure_base import measure_base

    def answer(message: Message) -> Iterator[BaseModel]:
        asked = (
            TrainingRequest.model_validate(message["request"]),
            ModelFacts.model_validate(message["base"]),
            Hardware.model_validate(message["hardware"]),
        )
        if message.get("folder"):
            with whole_folder(Path(message["folder"]), "The quantized base") as part:
                quality = write_gptq_base(*asked, part, message["token"])
        else:
            folder = Path(message["quantized_folder"])
            quality = measure_base(*asked, folder, message["token"])
        yield quality

    return answer


def _exporter() -> Answer:
    """{"run", "options", "folder", "token"} -> Exporting, Exported."""
    with imports():
        from qlora_space.model.export_run import export_run

    return lambda message: export_run(
        RunFolder(Path(message["run"])),
        ExportOptions.model_validate(message["options"]),
        Path(message["folder"]),
        message["token"],
    )


def _prover() -> Answer:
    """{"run", "repo", "commit", "step", "token"} -> Exporting, Proof."""
    with imports():
        from qlora_space.model.proof import PublishedAs, prove

    return lambda message: prove(
        RunFolder(Path(message["run"])),
        PublishedAs(message["repo"], message["commit"], message["step"]),
        message["token"],
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
