"""HF Jobs with the visitor's token: what machines cost, a job's start, state, log and end."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from huggingface_hub import JobHardwareInfo, JobInfo

from qlora_space.core.errors import HubError, QloraSpaceError
from qlora_space.core.places import Flavor
from qlora_space.hub.connection import (
    CLIENT_ERRORS,
    as_argument,
    explained_errors,
    hub_api,
    hub_error,
    is_repo_id,
    status_of,
)
from qlora_space.plan import flavor

ENDED_STAGES = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
ASK_LABEL = "ask"  # what a running job is asked for: its own process reads it (places/job_entry.py)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([TG]?)", re.IGNORECASE)
_BILLING = "https://huggingface.co/settings/billing"
_PAYMENT_REQUIRED, _FORBIDDEN, _NOT_FOUND = 402, 403, 404
_PACKAGE = "qlora_space/places/job_entry.py"
_HOURS = {"minute": 60.0, "hour": 1.0}


@dataclass(frozen=True)
class JobSpec:
    """What is submitted. `environment` can be read by whoever sees the job; `secrets` by the job alone."""

    namespace: str
    image: str
    command: Sequence[str]
    flavor: str
    timeout_seconds: int
    environment: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    labels: Mapping[str, str]


@dataclass(frozen=True)
class JobState:
    """What the Hub says of a job. `running_seconds`: billed until now."""

    id: str
    url: str
    stage: str
    message: str
    running_seconds: float
    labels: Mapping[str, str]

    @property
    def is_over(self) -> bool:
        return self.stage in ENDED_STAGES


def job_flavors(token: str | None) -> tuple[Flavor, ...]:
    """The machines of HF Jobs at today's prices. Raises HubError if the Hub does not answer."""
    with _explained("The prices of HF Jobs could not be read"):
        found = hub_api(token).list_jobs_hardware(token=as_argument(token))
    return tuple(_flavor(item) for item in found if item.unit_label in _HOURS)


def _flavor(item: JobHardwareInfo) -> Flavor:
    gpu = item.accelerator
    return flavor(
        item.name,
        item.pretty_name,
        gpu=gpu.model if gpu else "",
        num_gpus=max(1, int(_number(gpu.quantity))) if gpu else 1,
        gpu_gb=_number(gpu.vram) if gpu else 0.0,
        cpu_cores=max(1, int(_number(item.cpu))),
        ram_gb=_number(item.ram),
        disk_gb=_number(item.ephemeral_storage),
        usd_per_hour=round(item.unit_cost_usd * _HOURS[item.unit_label], 4),
    )


def _number(text: str) -> float:
    """Of '24 GB', '2 vCPU', '1 TB'; 0 without one."""
    found = _NUMBER.search(str(text))
    if found is None:
        return 0.0
    return float(found[1]) * (1000 if found[2].upper() == "T" else 1)


def submit_job(spec: JobSpec, token: str | None) -> JobState:
    """Raises HubError, with a sentence for an account without credit and a sign-in that may not."""
    with _explained("The job could not be started"):
        job = hub_api(token).run_job(
            image=spec.image,
            command=list(spec.command),
            env=dict(spec.environment),
            secrets=dict(spec.secrets),
            flavor=spec.flavor,
            timeout=spec.timeout_seconds,
            labels=dict(spec.labels),
            namespace=spec.namespace,
            token=as_argument(token),
        )
    return _state(job)


@dataclass(frozen=True)
class SubmittedJob:
    """One of an account's jobs. `created_at`: Unix time in seconds."""

    id: str
    url: str
    created_at: float


def submitted_job(
    namespace: str, labels: Mapping[str, str], token: str | None
) -> SubmittedJob | None:
    """The newest of the jobs with these labels. Raises HubError."""
    with _explained("The jobs could not be read"):
        found = list(
            hub_api(token).list_jobs(
                labels=dict(labels), namespace=namespace, token=as_argument(token)
            )
        )
    jobs = [
        SubmittedJob(job.id, job.url, job.created_at.timestamp()) for job in found if job.created_at
    ]
    return max(jobs, key=lambda job: job.created_at, default=None)


def pinned_code(name: str, token: str | None) -> tuple[str, str]:
    """A Space that holds this program, and the commit that a job is to run. `name`: 'OWNER/NAME', of which it is the
    commit that runs now, or 'OWNER/NAME@COMMIT'. Raises HubError."""
    repo, _, commit = name.partition("@")
    if not is_repo_id(repo) or "/" not in repo:
        raise HubError(
            "It is not known from where a job gets this program.",
            "Put it on a Space (qlora-space deploy --to OWNER/NAME --yes), and set QLORA_SPACE_CODE=OWNER/NAME.",
        )
    with explained_errors(repo, HubError, "space", commit or None):
        info = hub_api(token).space_info(repo, revision=commit or None)
    if _PACKAGE not in {file.rfilename for file in info.siblings or ()}:
        raise HubError(
            f"{repo} does not hold this program.", "Name a Space that `qlora-space deploy` made."
        )
    running = (info.runtime.raw.get("sha") if info.runtime else None) if not commit else None
    return repo, str(running or info.sha)


def job_state(namespace: str, job_id: str, token: str | None) -> JobState:
    """Raises HubError; a job that the Hub has forgotten is DELETED."""
    with _explained("The job could not be read"):
        try:
            job = hub_api(token).inspect_job(
                job_id=job_id, namespace=namespace, token=as_argument(token)
            )
        except CLIENT_ERRORS as error:
            if status_of(error) == _NOT_FOUND:
                return JobState(job_id, "", "DELETED", "", 0.0, {})
            raise
    return _state(job)


def job_log(namespace: str, job_id: str, token: str | None) -> Iterator[str]:
    """Every line from the first on, and new ones as they come, until the job is over. Raises HubError where the
    connection is lost for good; lines that were there may come once more after that."""
    with _explained("The log of the job could not be read"):
        yield from hub_api(token).fetch_job_logs(
            job_id=job_id, namespace=namespace, follow=True, token=as_argument(token)
        )


def ask_job(namespace: str, job_id: str, what: str, token: str | None) -> None:
    """Let a label of the job say `what`, beside those that it has. Raises HubError."""
    labels = dict(job_state(namespace, job_id, token).labels) | {ASK_LABEL: what}
    with _explained("The job could not be asked to stop"):
        hub_api(token).update_job_labels(
            job_id=job_id, labels=labels, namespace=namespace, token=as_argument(token)
        )


def cancel_job(namespace: str, job_id: str, token: str | None) -> None:
    """End it at once; one that is over already stays as it is. Raises HubError."""
    if job_state(namespace, job_id, token).is_over:
        return
    with _explained("The job could not be cancelled"):
        hub_api(token).cancel_job(job_id=job_id, namespace=namespace, token=as_argument(token))


def may_run_jobs(scope: str) -> bool:
    """Whether a sign-in with these scopes, parted by spaces, may start jobs; '' is a token without scopes."""
    return not scope or "jobs" in scope.split()


def _state(job: JobInfo) -> JobState:
    running = job.durations.running_secs if job.durations else None
    return JobState(
        id=job.id,
        url=job.url,
        stage=str(getattr(job.status.stage, "value", job.status.stage)),
        message=job.status.message or "",
        running_seconds=float(running or 0),
        labels=job.labels or {},
    )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except QloraSpaceError:
        raise
    except CLIENT_ERRORS as error:
        status = status_of(error)
        if status == _PAYMENT_REQUIRED:
            raise HubError(
                f"{what}: your account has no credit for HF Jobs.", f"Add some at {_BILLING}."
            ) from None
        if status == _FORBIDDEN:
            raise HubError(
                f"{what}: this sign-in does not include HF Jobs (the scope “jobs”).",
                "Sign in again and allow it; on a machine of your own, use a token that has it.",
            ) from None
        raise hub_error(error, what) from None
    except ValueError as error:  # an answer that is not what the client expects
        raise hub_error(error, what) from None
