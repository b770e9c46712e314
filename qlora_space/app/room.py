"""Whether a shared machine has room for one thing more, and what it will have."""

from collections.abc import Sequence
from pathlib import Path

from qlora_space.core.errors import DiskFull, RunError
from qlora_space.core.facts import Hardware
from qlora_space.core.limits import Limits
from qlora_space.core.wording import counted
from qlora_space.plan import Plan, host_gib
from qlora_space.runs import RunView


def when_done(hardware: Hardware, plan: Plan, view: RunView) -> Hardware:
    """The machine without what the run of this plan and view holds of it."""
    used = view.latest("card_gib") or view.latest("memory_gib") or 0.0
    free = min(hardware.memory_gib, hardware.free_gib + used)
    host = hardware.host_free_gib
    if plan.cpu_offload:
        host += host_gib(plan.base) * plan.num_processes
    return hardware.model_copy(update={"free_gib": round(free, 2), "host_free_gib": round(host, 2)})


def check_free_disk(hardware: Hardware, limits: Limits) -> None:
    """Raises DiskFull."""
    free, least = hardware.disk_free_gib, limits.min_free_gib
    if free < least:
        raise DiskFull(
            f"This Space has {free:.1f} GiB of disk left and keeps {least:g} GiB free.",
            "Try later, or use a Space of your own.",
        )


def check_room_for_upload(uploads_folder: Path, num_bytes: int, limits: Limits) -> None:
    """Beside what the visitor has there. Raises DiskFull."""
    kept = sum(file.stat().st_size for file in uploads_folder.glob("*/*"))
    if kept + num_bytes > limits.upload_gib * 2**30:
        raise DiskFull(
            f"Your uploads would take more than {limits.upload_gib:g} GiB.",
            "Delete runs that use older ones, or name a dataset on the Hub.",
        )


def check_room_for_a_run(is_mine: Sequence[bool], limits: Limits) -> None:
    """`is_mine`: of each run that waits or trains. Raises RunError where one visitor, or all together, have as many
    as the Space's owner allows."""
    mine = sum(is_mine)
    if mine >= limits.live_runs:
        raise RunError(
            f"You have {counted(mine, 'run')} here that waits or trains, and may have {limits.live_runs}.",
            "Wait until one is done, or stop one.",
        )
    if len(is_mine) >= limits.waiting_runs:
        raise RunError(
            f"{len(is_mine)} runs wait or train here, as many as this Space takes.", "Try later."
        )
