"""What can be known to go wrong before anything is started."""

from qlora_space.core.errors import DiskFull, OutOfMemory, RequestError
from qlora_space.core.inspection import Inspection
from qlora_space.core.request import TrainingRequest
from qlora_space.plan.memory import bits_per_weight
from qlora_space.plan.plan import Plan


def check_startable(request: TrainingRequest, plan: Plan, inspection: Inspection) -> None:
    """Raises the first thing that would make the run fail later."""
    if request.mirror_to and plan.is_low_bit:
        raise RequestError(
            f"mirror_to does not work at {plan.bits} bits: the packed base would not be copied.",
            "Leave it out, or use 4 bits or more.",
        )
    if inspection.errors:
        first = inspection.errors[0]
        raise RequestError(first.message, first.fix)
    if not plan.estimate.fits:
        raise OutOfMemory(
            f"This needs about {plan.estimate.peak_gib:.1f} GiB, but {plan.hardware.name} has "
            f"{plan.hardware.free_gib:.1f} GiB free.",
            "Use fewer bits, a shorter max_length, or a smaller base.",
        )
    stored = bits_per_weight(plan.mean_bits or plan.bits, plan.group_size, is_packed=True)
    packed_bytes = plan.base.linear_parameters * stored / 8
    download = plan.base.file_bytes if plan.base.source == "hub" else 0
    packed = packed_bytes if plan.is_low_bit else 0
    needed_gib = 0.2 + (download + packed) / 2**30
    if plan.hardware.disk_free_gib < needed_gib:
        raise DiskFull(
            f"{needed_gib:.1f} GiB of disk are needed, {plan.hardware.disk_free_gib:.1f} GiB are free.",
            "Free some space and try again.",
        )
