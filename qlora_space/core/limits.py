"""What one visitor of a public Space may take, so that there is enough for all; set by the Space's owner.

Each field is an environment variable: QLORA_SPACE_ and its name in capitals.
"""

import os
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_space.core.errors import RequestError

_PREFIX = "QLORA_SPACE_"


class Limits(BaseModel):
    """Off a Space there is one user, and none of this holds."""

    model_config = ConfigDict(frozen=True)

    calls_per_minute: int = Field(
        default=300, gt=0, description="Calls of one visitor to the page or the API."
    )
    calls_per_minute_of_address: int = Field(
        default=900, gt=0, description="The same for one network address, which many may share."
    )
    pending_calls: int = Field(
        default=12, gt=0, description="Calls of one visitor that wait or run at once."
    )
    streams: int = Field(
        default=20, gt=0, description="Tabs of one visitor that watch a run at once."
    )
    live_runs: int = Field(
        default=2, gt=0, description="Runs of one visitor that wait or train at once."
    )
    waiting_runs: int = Field(
        default=20, gt=0, description="Runs of all visitors that wait or train at once."
    )
    upload_gib: float = Field(
        default=2.0, gt=0, description="Uploaded files that one visitor may keep."
    )
    min_free_gib: float = Field(
        default=2.0, ge=0, description="Free disk below which nobody uploads or starts a run."
    )
    keep_days: float = Field(
        default=30.0,
        gt=0,
        description="Days after which a run that is over, or an unused upload, is deleted.",
    )
    warning_days: float = Field(
        default=7.0,
        gt=0,
        description="Days that an adapter which was not published is kept beyond that, with a warning.",
    )
    proxies: int = Field(
        default=1,
        ge=0,
        description="Proxies in front of the server, whose word for a visitor's address is taken.",
    )


def limits_from(environment: Mapping[str, str] = os.environ) -> Limits:
    """Raises RequestError for a value that none of them may have."""
    given = {name: environment.get(f"{_PREFIX}{name.upper()}") for name in Limits.model_fields}
    try:
        return Limits.model_validate({name: value for name, value in given.items() if value})
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str(wrong["loc"][0])
        raise RequestError(
            f"{_PREFIX}{name.upper()} is {str(given[name])[:40]!r}: {wrong['msg'][:1].lower()}{wrong['msg'][1:]}.",
            "Correct it, or leave it out.",
        ) from None
