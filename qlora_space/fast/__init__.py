"""A fast, exact QLoRA training step for peft models; knows nothing of the rest of this package.

    step, text = attach(model)          # in a training loop of your own: loss = step(batch, num_items)
    speed_up(trainer)                   # for trl's SFTTrainer, before trainer.train()

transformers runs a decoder layer as dozens of small kernels under autograd, which decides what is kept for backward.
Here forward and backward of a layer are written out (layer.py) over a few Triton kernels (kernels.py), so that the
adapters' small products ride along with the large ones and exactly as much is kept as the GPU has room for
(autotune.py). Losses and gradients are those of the plain step up to rounding; `attach` compares both on the spot.

Names are imported when they are first used: `limits` and `policies` are cheap and need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_space.fast.batch import Batch, make_batch, packed_inputs
    from qlora_space.fast.host_memory import move_to_host
    from qlora_space.fast.limits import Unsupported
    from qlora_space.fast.model import FastModel
    from qlora_space.fast.policies import ActivationPolicy
    from qlora_space.fast.step import Attached, FastStep, attach
    from qlora_space.fast.trainer import speed_up
    from qlora_space.fast.warming import nf4_linear, warm_up

_MODULE_OF = {
    "ActivationPolicy": "policies",
    "Attached": "step",
    "Batch": "batch",
    "FastModel": "model",
    "FastStep": "step",
    "Unsupported": "limits",
    "attach": "step",
    "make_batch": "batch",
    "move_to_host": "host_memory",
    "nf4_linear": "warming",
    "packed_inputs": "batch",
    "speed_up": "trainer",
    "warm_up": "warming",
}
__all__ = [
    "ActivationPolicy",
    "Attached",
    "Batch",
    "FastModel",
    "FastStep",
    "Unsupported",
    "attach",
    "make_batch",
    "move_to_host",
    "nf4_linear",
    "packed_inputs",
    "speed_up",
    "warm_up",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """PEP 562. No module is called as one of these names, or it would hide the name once it is imported."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
