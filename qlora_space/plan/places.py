"""What a run would be in each place: whether it fits, how long it takes, what it costs. Pure arithmetic on live prices.

How quick a GPU is stands in speed.py; how much memory it has, here.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence

from qlora_space.core.errors import OutOfMemory, RequestError
from qlora_space.core.facts import Hardware
from qlora_space.core.options import DEMO
from qlora_space.core.places import Flavor, PlaceOffer
from qlora_space.core.request import TrainingRequest
from qlora_space.core.wording import duration, price
from qlora_space.plan.plan import Plan

# Total memory in MiB as nvidia-smi shows it for such a card, by what the Hub's list calls the accelerator; whether it
# has bf16, and 8-bit floats (compute capability 8.0 and 8.9 on). The first that is in the name.
_GPUS = (
    ("RTX PRO 6000", 97_887, True, True),
    ("H200", 143_771, True, True),
    ("H100", 81_559, True, True),
    ("A100", 81_920, True, False),
    ("L40S", 46_068, True, True),
    ("L4", 23_034, True, True),
    ("A10G", 23_028, True, False),
    ("T4", 15_360, False, False),
)
_UNKNOWN_SHARE = 0.9  # of the gigabytes that the list says, of a GPU that is not in the table
_GB = 1e9 / 2**30
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HELD_BY_SYSTEM = 0.97  # of a card or a machine that nobody else uses: what is left free
# Before the worker's first line: libraries of some gigabytes are installed. Not measured on HF Jobs; it is billed.
_INSTALL_SECONDS = 240.0
_DOWNLOAD_PER_SECOND = 200e6  # bytes of a base from the Hub
_TIMEOUT_FACTOR, _TIMEOUT_MORE_SECONDS = 2.0, 1800.0
_LONGEST_SECONDS = 7 * 86400


def flavor(  # noqa: PLR0913 - each is a column of the Hub's list
    name: str,
    label: str,
    *,
    gpu: str,
    num_gpus: int,
    gpu_gb: float,
    cpu_cores: int,
    ram_gb: float,
    disk_gb: float,
    usd_per_hour: float,
) -> Flavor:
    """A machine of the Hub's list. `gpu`: the accelerator's model, '' for none; `gpu_gb`: of all of them together."""
    ram_gib = ram_gb * _GB * _HELD_BY_SYSTEM
    common = {"cpu_cores": cpu_cores, "disk_free_gib": round(disk_gb * _GB, 1)}
    common |= {"price_per_hour_usd": usd_per_hour}
    if not gpu:
        memory = {"memory_gib": round(ram_gb * _GB, 2), "free_gib": round(ram_gib, 2)}
        cpu = Hardware(
            name=f"CPU, {cpu_cores} cores", device="cpu", has_bf16=False, **memory, **common
        )
        return Flavor(name=name, label=label, hardware=cpu)
    known = (row for row in _GPUS if row[0] in gpu.upper().replace("-", " "))
    guess = gpu_gb / num_gpus * _GB * 1024 * _UNKNOWN_SHARE
    title, mib, has_bf16, has_fp8 = next(known, (gpu, guess, True, False))
    hardware = Hardware(
        name=f"NVIDIA {title}",
        device="cuda",
        num_gpus=num_gpus,
        memory_gib=round(mib / 1024, 2),
        free_gib=round(mib / 1024 * _HELD_BY_SYSTEM, 2),
        has_bf16=has_bf16,
        has_fp8=has_fp8,
        host_free_gib=round(ram_gib, 2),
        **common,
    )
    return Flavor(name=name, label=label, hardware=hardware)


def here_offer(plan: Plan) -> PlaceOffer:
    """Of this machine, for which the plan was made."""
    estimate = plan.estimate
    return PlaceOffer(
        kind="here",
        label="this machine",
        hardware=plan.hardware,
        peak_gib=estimate.peak_gib,
        least_gib=estimate.least_gib,
        fits=estimate.fits,
        seconds=estimate.seconds,
        usd=estimate.cost_usd,
    )


def job_offer(request: TrainingRequest, plan: Plan, machine: Flavor) -> PlaceOffer:
    """Of a job on that machine, for which the plan was made."""
    estimate, per_hour = plan.estimate, machine.hardware.price_per_hour_usd
    download = plan.base.file_bytes if plan.base.source == "hub" else 0
    seconds = estimate.seconds + _INSTALL_SECONDS + download / _DOWNLOAD_PER_SECOND
    usd = seconds / 3600 * per_hour
    return PlaceOffer(
        kind="job",
        flavor=machine.name,
        label=machine.label,
        hardware=machine.hardware,
        peak_gib=estimate.peak_gib,
        least_gib=estimate.least_gib,
        fits=estimate.fits,
        seconds=round(seconds, 1),
        usd=round(usd, 4),
        timeout_seconds=_timeout(seconds, per_hour, request.max_usd),
        problem=why_no_job(request, plan) or _over_the_cap(usd, request.max_usd),
    )


def _timeout(seconds: float, per_hour_usd: float, max_usd: float | None) -> int:
    """Room for an estimate that is wrong, within the cap."""
    wanted = min(seconds * _TIMEOUT_FACTOR + _TIMEOUT_MORE_SECONDS, _LONGEST_SECONDS)
    if max_usd is None or not per_hour_usd:
        return math.ceil(wanted)
    return min(math.ceil(wanted), math.floor(max_usd / per_hour_usd * 3600))


def _over_the_cap(usd: float, max_usd: float | None) -> str:
    if max_usd is None or usd <= max_usd:
        return ""
    return f"costs about {price(usd)}, more than max_usd ({price(max_usd)})"


def why_no_job(request: TrainingRequest, plan: Plan) -> str:
    """What of this run is on this machine only, or does not go through a copy on the Hub; '' if nothing."""
    if plan.is_low_bit:
        return f"a job needs a base at 4 bits or more that is not calibrated: this one has {plan.mean_width:g}"
    # What came from the Hub has a commit, a file another hash.
    if request.dataset != DEMO and not _COMMIT.fullmatch(plan.dataset.sha):
        return "the dataset is a file on this machine, which a job does not see: put it on the Hub"
    if plan.base.source == "local":
        return "the base is a folder on this machine, which a job does not see: put it on the Hub"
    return ""


def offers(
    request: TrainingRequest,
    here: Plan,
    machines: Sequence[Flavor],
    plan_at: Callable[[Hardware], Plan],
) -> tuple[PlaceOffer, ...]:
    """Of this machine, then of jobs, the cheapest of those that can run first. `plan_at`: the run's plan on other
    hardware; machines that no plan can be made for are left out."""
    return (here_offer(here), *sorted(_job_offers(request, machines, plan_at), key=_rank))


def _job_offers(
    request: TrainingRequest, machines: Sequence[Flavor], plan_at: Callable[[Hardware], Plan]
) -> Iterator[PlaceOffer]:
    for machine in machines:
        is_named = machine.name == request.flavor
        if machine.hardware.device == "cpu" and not is_named:  # cheap an hour, and takes days
            continue
        try:
            yield job_offer(request, plan_at(machine.hardware), machine)
        except RequestError:  # of a value that such a machine does not take
            if is_named:
                raise


def _rank(offer: PlaceOffer) -> tuple[bool, float, float]:
    return (not offer.can_run, round(offer.usd, 2), offer.seconds)


def cheapest(found: Sequence[PlaceOffer]) -> PlaceOffer | None:
    """Of those that can run; this machine costs nothing where it has no price."""
    can = [offer for offer in found if offer.can_run]
    return min(can, key=_rank, default=None)


def chosen_job(request: TrainingRequest, found: Sequence[PlaceOffer]) -> PlaceOffer:
    """The job that the request asks for: on the named machine, or on the cheapest that fits.

    Raises RequestError for a machine that the Hub does not offer or that the cap does not allow, OutOfMemory if the
    run fits nowhere.
    """
    jobs = [offer for offer in found if offer.kind == "job"]
    if request.flavor:
        named = next((offer for offer in jobs if offer.flavor == request.flavor), None)
        if named is None:
            known = ", ".join(sorted(offer.flavor for offer in jobs))
            raise RequestError(
                f"flavor is {request.flavor[:40]!r}, which HF Jobs does not offer.",
                f"Choose one of: {known}.",
            )
        if named.problem:
            raise RequestError(f"{named.label}: {named.problem}.", "Change that, or run it here.")
        return named
    best = cheapest(jobs)
    if best is not None:
        return best
    if (problem := next((o.problem for o in jobs if o.fits and o.problem), "")) or not jobs:
        what = f"No job can run this: {problem or 'HF Jobs offers nothing now'}."
        raise RequestError(what, "Change that, or run it here.")
    largest = max(jobs, key=lambda offer: offer.hardware.free_gib)
    raise OutOfMemory(
        f"This needs about {largest.least_gib:.1f} GiB, and the largest machine of HF Jobs has "
        f"{largest.hardware.free_gib:.1f} GiB.",
        "Use fewer bits, a shorter max_length, or a smaller base.",
    )


def offer_in_words(offer: PlaceOffer) -> str:
    """'about 25 min and $0.33, at most $0.90'."""
    words = f"about {duration(offer.seconds)}"
    if offer.kind != "job":
        return words
    return f"{words} and {price(offer.usd)}, at most {price(offer.most_usd)}"
