"""What is left of a visitor's ZeroGPU quota, as far as their sign-in lets us ask."""

from qlora_space.hub.connection import CLIENT_ERRORS, hub_api
from qlora_space.plan.slices import Quota


def read_quota(token: str | None, factor: float) -> Quota | None:
    """None where nobody says: without a token, one without the scope `read-billing`, or if the Hub does not answer.

    factor: how often a second on this Space's GPU counts.
    """
    if not token:
        return None
    try:
        found = hub_api(token).get_zero_gpu_quota(token=token)
        return Quota(max(0.0, float(found.remaining)), float(found.base), factor)
    except (*CLIENT_ERRORS, KeyError, TypeError, ValueError):  # answers of another form, too
        return None
