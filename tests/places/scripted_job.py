"""A run whose job is played by a test: what a job does to the fake Hub (its log, its copy), without a machine."""

from pathlib import Path

from qlora_space.core.events import Checkpoint, Event, Finished, Metric, Phase
from qlora_space.core.request import TrainingRequest
from qlora_space.hub.mirror import fetch_copy, push_copy
from qlora_space.places.job_lines import lines_of
from qlora_space.places.jobs import JobBackend
from qlora_space.plan import flavor
from qlora_space.plan.places import job_offer
from qlora_space.runs import EventLog, RunFolder, create_run
from tests.fake_hub import ALICE, FakeHub
from tests.fake_jobs import Job
from tests.train.conftest import demo_plan

CODE, REPO = "alice/app", "alice/run-mirror-1"
L4 = flavor(
    "l4x1", "1x Nvidia L4", gpu="L4", num_gpus=1, gpu_gb=24, cpu_cores=8, ram_gb=30, disk_gb=400, usd_per_hour=0.8
)  # fmt: skip


def run_for_a_job(home: Path, **request: object) -> RunFolder:
    """As `Actions.start` makes it, before the job is submitted."""
    asked = TrainingRequest(place="job", mirror_to=REPO, **request)  # type: ignore[arg-type]
    plan = demo_plan()
    placed = plan.model_copy(update={"offer": job_offer(asked, plan, L4)})
    return create_run(home / "runs", asked, placed)


def submitted(run: RunFolder, hub: FakeHub) -> Job:
    """The job of the run, which nobody follows yet."""
    hub.add_space(CODE, {"qlora_space/places/job_entry.py": "", "requirements.txt": ""})
    backend = JobBackend(CODE)
    backend._follow = lambda run, token: None  # type: ignore[method-assign]
    backend.start(run, ALICE)
    (job,) = hub.jobs.values()
    return job


class ScriptedJob:
    """Its run folder is another machine's."""

    def __init__(self, job: Job, home: Path) -> None:
        self.job = job
        job.run()
        job.say("===== Job started at 2026-12-01 =====", "", "Successfully installed torch")
        self.run = fetch_copy(job.spec["environment"]["QLORA_SPACE_JOB_REPO"], home, ALICE)
        self._events = EventLog(self.run.events_file)

    def emit(self, *events: Event) -> None:
        for event in events:
            written = self._events.append(event)
            self.job.say(*lines_of(written.seq, written.model_dump_json()))

    def train(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.emit(Metric(step=step, total_steps=9, values={"loss": 3 / step}))

    def save(self, step: int) -> None:
        folder = self.run.checkpoint_folder(step)
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"weights of %d" % step)
        (folder / "state.json").write_text(f'{{"step": {step}, "best_step": null}}')
        self.emit(Checkpoint(step=step, num_bytes=10, seconds=0.1))

    def copy(self) -> None:
        push_copy(self.run, self.job.spec["environment"]["QLORA_SPACE_JOB_REPO"], ALICE)

    def finish(self, last: Event | None = None) -> None:
        """The whole end of a run that went well, or of one that ended so."""
        self.emit(Phase(name="report", done=0, total=1))
        if last is None:
            self.run.adapter_folder.mkdir()
            (self.run.adapter_folder / "adapter_model.safetensors").write_bytes(b"learned")
        self.emit(last or Finished(step=9))
        self.copy()
        self.job.end("COMPLETED")
