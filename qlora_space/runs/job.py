"""The job at HF Jobs in which a run is, or was last: job.json in its folder. It holds no token."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_space.core.atomic import write_atomically


class JobRecord(BaseModel):
    """Times are Unix times in seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,100}$", description="As the Hub calls it.")
    namespace: str
    url: str
    repo: str = Field(description="The private copy through which everything comes and goes.")
    flavor: str
    label: str = Field(description="Of the machine, in words.")
    usd_per_hour: float = 0.0
    timeout_seconds: int = 0
    submitted_at: float
    stage: str = Field(default="SCHEDULING", description="The Hub's word.")
    running_seconds: float = Field(default=0.0, description="Billed, when it was last asked.")
    asked_at: float = Field(default=0.0, description="When that was.")
    usd_before: float = Field(default=0.0, description="Of earlier jobs of this run.")
    is_over: bool = False

    def usd(self, now: float) -> float:
        """What all jobs of the run have cost until Unix time `now`, by their price."""
        since = max(0.0, now - self.asked_at) if self.stage == "RUNNING" else 0.0
        seconds = self.running_seconds + since
        if self.timeout_seconds:
            seconds = min(seconds, self.timeout_seconds)
        return self.usd_before + seconds / 3600 * self.usd_per_hour


def read_job(file: Path) -> JobRecord | None:
    """None without one, or if the file is damaged."""
    try:
        return JobRecord.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_job(file: Path, job: JobRecord) -> None:
    """Raises DiskFull."""
    write_atomically(file, job.model_dump_json(indent=1))
