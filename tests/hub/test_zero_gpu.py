"""What is left of a ZeroGPU quota is known where a token may ask, and unknown everywhere else."""

from qlora_space.hub.zero_gpu import read_quota
from qlora_space.plan.slices import Quota
from tests.fake_hub import ALICE, BOB, FakeHub


def test_a_quota_is_read_with_the_visitors_token(hub: FakeHub) -> None:
    hub.gpu_quota = {"alice": (2400.0, 1810.0)}
    assert read_quota(ALICE, 1.5) == Quota(1810.0, 2400.0, 1.5)


def test_a_quota_that_nobody_says_is_unknown(hub: FakeHub) -> None:
    """No token, one without the scope, an unknown one, a Hub that fails or answers something else."""
    assert read_quota(None, 1.0) is None
    assert read_quota(BOB, 1.0) is None
    assert read_quota("hf_unknown", 1.0) is None
    hub.gpu_quota = {"alice": (2400.0, "soon")}  # type: ignore[dict-item]
    assert read_quota(ALICE, 1.0) is None
