"""The fast exact QLoRA step: one way through a peft model that computes what the plain way computes."""

from qlora_space.fast.attach import FastStep, attach
from qlora_space.fast.batch import Batch, make_batch
from qlora_space.fast.host_memory import move_to_host
from qlora_space.fast.layer import ActivationPolicy
from qlora_space.fast.model import FastModel, FastReport, apply
from qlora_space.fast.warm import nf4_linear, warm_up

__all__ = [
    "ActivationPolicy",
    "Batch",
    "FastModel",
    "FastReport",
    "FastStep",
    "apply",
    "attach",
    "make_batch",
    "move_to_host",
    "nf4_linear",
    "warm_up",
]  # fmt: skip
