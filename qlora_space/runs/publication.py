"""What of a run was published and where, and a push that is still to be made.

publications.jsonl has one line for each verified push. unsent_push.json is there from before a push is begun until it
is done, so that whoever finds it sends it again; it holds no token.
"""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qlora_space.core.export import ModelFormat

What = Literal["adapter", "demo-space"] | ModelFormat
SpaceHardware = Literal["zero-a10g", "cpu-basic"]
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 60.0, 3600.0


class PushRequest(BaseModel):
    """What is to be published, and where. `private` is about a new repository only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str
    what: What = Field(
        default="adapter", description="The adapter, an export, or a Space that shows it."
    )
    private: bool = True
    for_16_bit: bool = Field(default=False, description="Take the repair of the low-bit base out.")
    with_base: bool = Field(default=False, description="The packed base too.")
    step: int | None = Field(
        default=None, description="Of a kept checkpoint; None: the run's adapter."
    )
    replace: bool = Field(default=False, description="Overwrite what somebody changed on the Hub.")
    hardware: SpaceHardware | None = Field(
        default=None, description="Of a demo Space; None: chosen by the size of the base."
    )

    @model_validator(mode="after")
    def _variant_is_of_an_adapter(self) -> Self:
        if self.what != "adapter" and (self.step is not None or self.for_16_bit or self.with_base):
            raise ValueError("step, for_16_bit and with_base are about the adapter alone")
        return self


class UnsentPush(BaseModel):
    """A push that was begun and is not known to be done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request: PushRequest
    was_created: bool = Field(default=False, description="The repository was made for it.")
    tries: int = 1
    tried_at: float = Field(description="Seconds since the epoch.")
    why: str = Field(default="", description="Why the last try failed; '': it was cut off.")
    is_refused: bool = Field(default=False, description="Only a person can decide what to do.")

    @property
    def next_at(self) -> float:
        """When it is due again, in seconds since the epoch: later after each try, hourly at last; never if refused."""
        if self.is_refused:
            return math.inf
        wait = _FIRST_WAIT_SECONDS * 2.0 ** min(self.tries - 1, 10)
        return self.tried_at + min(wait, _LONGEST_WAIT_SECONDS)


class Publication(BaseModel):
    """One verified push."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: str
    url: str
    commit: str
    num_files: int
    what: What = "adapter"
    created: bool = Field(description="The repository was made for it.")
    time: float = Field(description="Seconds since the epoch.")
    step: int | None = Field(
        default=None, description="Of the checkpoint; None: the run's adapter."
    )
    stayed_private: bool = Field(
        default=False, description="It was to be public, and the token may not change that."
    )
    for_16_bit: bool = Field(
        default=False, description="The repair of the low-bit base was taken out of the adapter."
    )
    notes: tuple[str, ...] = Field(default=(), description="What its owner should know.")
