"""A Space of the user's own that shows what an adapter changed: what it would be, and making it.

Its code is in demo_space_files.py. It holds no token: what it cannot read without one, its owner is told.
"""

import dataclasses
from dataclasses import dataclass

from qlora_space.core.errors import RunError
from qlora_space.core.wording import gib
from qlora_space.hub.connection import CLIENT_ERRORS, hub_api, is_repo_id
from qlora_space.hub.demo_space_files import DemoSpace, demo_files
from qlora_space.hub.publish import HARDWARE_NAMES, Published, PushOptions, publish_files
from qlora_space.hub.publish_export import is_private
from qlora_space.plan import Plan
from qlora_space.plan.memory import bits_per_weight
from qlora_space.runs import Publication, PushRequest, RunFolder
from qlora_space.runs.publication import SpaceHardware

_GIB = 2**30
_MOST_GIB_ON_CPU = 1.5  # in 16 bits: two cores answer in seconds, and 16 GB hold it several times
_MOST_GIB_ON_ZERO_GPU = 40.0  # of the half card that it lends
_SHARE = "Or give others the run's own link: “Share” on its page."


@dataclass(frozen=True)
class Demo:
    """The demo Space of a run as it would be made. `why`: the hardware, in a sentence."""

    adapter: Publication
    hardware: SpaceHardware
    bits: int
    base_gib: float
    why: str


def demo_of(run: RunFolder, hardware: SpaceHardware | None = None) -> Demo:
    """Of the adapter that was published last. Raises RunError if no Space can load it."""
    plan = run.plan()
    published = [each for each in run.publications() if is_repo_id(each.repo)]
    if not published:
        raise RunError(
            "This run was not published.", "Publish its adapter: a Space loads it there."
        )
    adapter = published[-1]
    _refuse_base(plan, adapter)
    chosen = hardware or _hardware_for(plan)
    is_cpu = chosen == "cpu-basic"
    if is_cpu:
        _refuse_on_cpu(plan)
    bits = 16 if is_cpu or adapter.for_16_bit or plan.base.expert_bits else plan.bits
    base_gib = _base_gib(plan, bits)
    if not is_cpu and base_gib > _MOST_GIB_ON_ZERO_GPU:
        raise RunError(
            f"The base takes {base_gib:.0f} GiB at {bits} bits, more than ZeroGPU lends.", _SHARE
        )
    return Demo(adapter, chosen, bits, base_gib, _why(chosen, bits, base_gib, plan.bits))


def _refuse_base(plan: Plan, adapter: Publication) -> None:
    base = plan.base
    if base.source == "local" or (base.source == "hub" and not is_repo_id(base.id)):
        raise RunError("The base of this run is a folder, which no Space can read.", _SHARE)
    if plan.is_low_bit and not adapter.for_16_bit:
        raise RunError(
            f"A base of {plan.mean_width:g} bits is loaded by qlora_space only, which the demo does not use.",
            "Publish the adapter for the 16-bit base first.",
        )
    stored = base.quantization or ("" if base.expert_bits else base.read_as)
    if stored not in ("", "bitsandbytes"):
        raise RunError(
            f"The base is stored as {stored[:40]}, and what reads that is not known to install on a Space.",
            _SHARE,
        )


def _hardware_for(plan: Plan) -> SpaceHardware:
    is_small = not _is_packed(plan) and _base_gib(plan, 16) <= _MOST_GIB_ON_CPU
    return "cpu-basic" if is_small else "zero-a10g"


def _refuse_on_cpu(plan: Plan) -> None:
    """Also where a person chose it: a Space that dies at its start shows nothing."""
    base_gib = _base_gib(plan, 16)
    if _is_packed(plan):
        raise RunError(
            f"A CPU does not run this base: it is stored in packed weights ({gib(base_gib)}) that need a GPU.",
            "Choose ZeroGPU.",
        )
    if base_gib > _MOST_GIB_ON_CPU:
        raise RunError(
            f"The base takes {gib(base_gib)} at 16 bits, more than the {_MOST_GIB_ON_CPU} GiB that a CPU answers with "
            "in seconds.",
            "Choose ZeroGPU.",
        )


def _is_packed(plan: Plan) -> bool:
    return bool(plan.base.quantization or plan.base.expert_bits)


def _base_gib(plan: Plan, bits: int) -> float:
    """As it is loaded: experts and all that is no linear stay in 16 bits with bitsandbytes."""
    base = plan.base
    if base.quantization:
        return base.file_bytes / _GIB
    packed = base.linear_parameters - base.expert_parameters if bits < 16 else 0
    rest = base.parameters + base.left_out_parameters - packed
    return (packed * bits_per_weight(bits) / 8 + rest * 2) / _GIB


def _why(hardware: SpaceHardware, bits: int, base_gib: float, trained_bits: int) -> str:
    size = f"{gib(base_gib)} at {bits} bits"
    if hardware == "zero-a10g":
        return (
            f"On ZeroGPU: the base takes {size}. It costs you nothing; each visitor's own minutes of GPU are used, "
            "and a free account may have two such Spaces."
        )
    other = (
        f" It was trained on {trained_bits} bits, so answers may differ a little."
        if trained_bits < bits
        else ""
    )
    return f"On a CPU: the base takes only {size}, so it answers without a GPU.{other}"


def publish_demo(
    run: RunFolder, push: PushRequest, token: str | None, options: PushOptions
) -> Published:
    """`push.repo` has its owner. As private as the adapter and the base are. Raises RunError and HubError; Conflict."""
    demo, plan, request = demo_of(run, push.hardware), run.plan(), run.request()
    adapter_is_private = is_private(demo.adapter.repo, token)
    base_is_private = plan.base.source == "hub" and is_private(plan.base.id, token)
    notes = _notes(
        "private" if adapter_is_private else "",
        "private" if base_is_private else "gated" if plan.base.gated else "",
    )
    files = demo_files(
        DemoSpace(
            name=run.name(),
            repo=push.repo,
            adapter=demo.adapter.repo,
            adapter_revision=demo.adapter.commit,
            hardware=demo.hardware,
            bits=demo.bits,
            base_gib=demo.base_gib,
            notes=(demo.why, *notes),
        ),
        run,
        plan,
        request,
    )
    options = dataclasses.replace(options, hardware=demo.hardware)
    private = push.private or adapter_is_private or base_is_private
    done = publish_files(files, "demo-space", push.repo, private, token, run.id, options)
    return dataclasses.replace(done, notes=(*notes, *_other_hardware(done, demo, token)))


def _notes(adapter: str, base: str) -> tuple[str, ...]:
    """What the Space cannot read by itself; each is 'private', 'gated' or ''. A token of the person who presses the
    button is never put there."""
    closed = {name: how for name, how in (("the adapter", adapter), ("the base", base)) if how}
    if not closed:
        return ()
    are = "are" if len(closed) == 2 else "is"
    kinds, how = " and ".join(closed), " or ".join(dict.fromkeys(closed.values()))
    return (
        f"It cannot read {kinds}, which {are} {how}: add a secret HF_TOKEN in its settings, with a token of yours "
        "that may only read. No token of yours was put there.",
    )


def _other_hardware(done: Published, demo: Demo, token: str | None) -> tuple[str, ...]:
    """A Space that exists keeps the hardware that it has."""
    if done.created:
        return ()
    try:
        runtime = hub_api(token).get_space_runtime(done.repo)
    except CLIENT_ERRORS:
        return ()
    there = runtime.requested_hardware or runtime.hardware
    if there in (None, demo.hardware):
        return ()
    return (
        f"It runs on {there} and was made for {HARDWARE_NAMES[demo.hardware]}: change that in its settings.",
    )
