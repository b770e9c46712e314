"""Out of memory: the same rows an update in smaller portions, as long as there are any."""

import gc
import math

import torch

from qlora_space.core.errors import OutOfMemory
from qlora_space.plan import Plan


def rows_per_step(plan: Plan) -> int:
    """Of all GPUs together, however many there are now."""
    on_one_gpu = plan.per_device_train_batch_size * plan.gradient_accumulation_steps
    return on_one_gpu * plan.num_processes


def accumulation(plan: Plan, micro_batch: int, num_processes: int) -> int:
    """Micro-batches of an update, so that its rows stay the same."""
    return math.ceil(rows_per_step(plan) / (micro_batch * num_processes))


def next_rung(plan: Plan, micro_batch: int, longest_row: int) -> int:
    """The next smaller micro-batch. Raises OutOfMemory at the end of the ladder."""
    if micro_batch > 1:
        return micro_batch // 2
    shorter = max(64, longest_row // 2 // 64 * 64)
    fewer = {16: 8, 8: 4}.get(plan.bits)
    others = [f"--bits {fewer}"] if fewer else []
    others += [] if plan.gradient_checkpointing else ["--gradient-checkpointing"]
    more = f", {' or '.join(others)}" if others else ", or a smaller base"
    raise OutOfMemory(
        f"One row of {longest_row:,} tokens needs more memory than there is, with one row at a time.",
        f"Use max_length {shorter:,}{more}.",
    )


def release_memory() -> None:
    """Give back what the broken step held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
