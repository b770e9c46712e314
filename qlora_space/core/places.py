"""Where a run can run, and what it would need and cost there. Plain values: the arithmetic is in plan/places.py."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qlora_space.core.facts import Hardware

PlaceKind = Literal["here", "job", "zerogpu"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Flavor(_Value):
    """A machine that HF Jobs rents out, at today's price (`hardware.price_per_hour_usd`)."""

    name: str = Field(description="As the Hub calls it: 'l4x1'.")
    label: str = Field(description="'1x Nvidia L4'.")
    hardware: Hardware


class PlaceOffer(_Value):
    """What the run would be in one place. An estimate, as the plan's own."""

    kind: PlaceKind
    flavor: str = Field(default="", description="Of a job.")
    label: str = Field(description="'this machine', '1x Nvidia L4'.")
    hardware: Hardware
    peak_gib: float
    least_gib: float
    fits: bool
    seconds: float = Field(description="Until the report; of a job with its installation.")
    usd: float = 0.0
    quota_minutes: float = Field(default=0.0, description="Of the visitor's day on ZeroGPU.")
    timeout_seconds: int = Field(
        default=0, description="When a job is ended, whatever it does; 0: never."
    )
    problem: str = Field(default="", description="Why the run cannot go there; '' if it can.")

    @property
    def can_run(self) -> bool:
        return self.fits and not self.problem

    @property
    def most_usd(self) -> float:
        """What a job costs if it runs until its timeout."""
        return self.timeout_seconds / 3600 * self.hardware.price_per_hour_usd
