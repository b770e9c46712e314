"""HF Jobs as a machine of its own: a process with nothing of ours but what the job was given."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fake_hub import FakeHub
from tests.fake_jobs import Job

_FROM_HERE = ("PATH", "LANG", "LD_LIBRARY_PATH")


def runs_commands(
    hub: FakeHub, home: Path, *, python: Path | None = None, **variables: str
) -> Callable[[Job], None]:
    """For `hub.job_runner`: the command as submitted, by that `python`; without one, what the command starts when it
    has installed everything, by the Python of these tests."""

    def run(job: Job) -> None:
        secrets = dict(job.spec["secrets"])
        environment = {name: os.environ[name] for name in _FROM_HERE if name in os.environ}
        environment |= {
            "HOME": str(home / job.id),
            "JOB_ID": job.id,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            **job.spec["environment"],
            **variables,
        }
        (home / job.id).mkdir(parents=True)
        token = ""
        if python is None:
            token = secrets.pop("HF_TOKEN") + "\n"
            environment["PYTHONPATH"] = str(Path(__file__).parents[2])
            command: Sequence[str] = [sys.executable, "-m", "qlora_space.places.job_entry"]
        else:
            command = [str(python), *job.spec["command"][1:]]
        process = subprocess.Popen(
            command,
            env=environment | secrets,
            cwd=home / job.id,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        job.on_cancel = process.kill
        job.run()
        threading.Thread(target=_read, args=(job, process, token), daemon=True).start()

    return run


def _read(job: Job, process: "subprocess.Popen[str]", token: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(token)
    process.stdin.close()
    for line in process.stdout:
        job.say(line.rstrip("\n"))
    job.end("ERROR" if process.wait() else "COMPLETED")
