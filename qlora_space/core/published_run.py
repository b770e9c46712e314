"""A run that somebody published: the request that makes the same one here."""

from pydantic import BaseModel, ConfigDict, Field

from qlora_space.core.request import TrainingRequest


class PublishedRun(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str
    request: TrainingRequest
    left_out: tuple[str, ...] = Field(
        default=(), description="What could not be taken over and why, a sentence each."
    )
