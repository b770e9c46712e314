"""What a job is given: image, command, environment, secrets, labels."""

from importlib.metadata import version

from qlora_space.hub.jobs import JobSpec
from qlora_space.places.job_entry import NAMESPACE, REPO, STARTED_AT, TIMEOUT
from qlora_space.runs import RunFolder
from qlora_space.runs.job import JobRecord

# Debian with a C compiler, which Triton needs; torch brings CUDA along.
IMAGE = "python:3.12.12-bookworm"
CODE_REPO, CODE_COMMIT = "QLORA_SPACE_JOB_CODE", "QLORA_SPACE_JOB_CODE_COMMIT"
_HUB = "QLORA_SPACE_JOB_HUB"
RUN_LABEL = "qlora-space-run"
# No value of a person is in it: all of them come from the environment. The token leaves the environment before
# anything else is started, and reaches the next program through a pipe.
_INSTALL = f"""
import os, subprocess, sys, tempfile, time
started_at, token = time.time(), os.environ.pop("HF_TOKEN")
pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]
client = os.environ["{_HUB}"]
subprocess.run([*pip, client], check=True)
from huggingface_hub import snapshot_download
repo, commit = os.environ["{CODE_REPO}"], os.environ["{CODE_COMMIT}"]
code = tempfile.mkdtemp()  # a program among the links of a cache does not find its own files
snapshot_download(repo, repo_type="space", revision=commit, token=token, local_dir=code)
subprocess.run([*pip, client, "-r", os.path.join(code, "requirements.txt")], check=True)
reading, writing = os.pipe()
os.write(writing, token.encode() + b"\\n")
os.close(writing)
os.dup2(reading, 0)
environment = {{**os.environ, "PYTHONPATH": code, "{STARTED_AT}": str(started_at), "SPACE_ID": repo}}
os.execve(sys.executable, [sys.executable, "-m", "qlora_space.places.job_entry"], environment)
"""


def job_spec(run: RunFolder, job: JobRecord, code: tuple[str, str], token: str) -> JobSpec:
    """`code`: a Space that holds this program, and the commit of it."""
    environment = {
        REPO: job.repo,
        NAMESPACE: job.namespace,
        TIMEOUT: str(job.timeout_seconds),
        CODE_REPO: code[0],
        CODE_COMMIT: code[1],
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        _HUB: f"huggingface_hub=={version('huggingface_hub')}",
    }
    return JobSpec(
        namespace=job.namespace,
        image=IMAGE,
        command=("python", "-c", _INSTALL),
        flavor=job.flavor,
        timeout_seconds=job.timeout_seconds,
        environment=environment,
        secrets={"HF_TOKEN": token},
        labels={RUN_LABEL: run.id, "name": f"qlora-space-{run.id[:8]}"},
    )
