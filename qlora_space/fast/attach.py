"""attach(): what a training loop holds to do micro-steps the fast way."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from qlora_space.fast.batch import make_batch
from qlora_space.fast.captured import MicroSteps
from qlora_space.fast.embedding import move_embedding_back, move_embedding_to_host
from qlora_space.fast.layer import ActivationPolicy
from qlora_space.fast.model import FastModel, apply, switch_fp8, use_fp8
from qlora_space.fast.tune import Memory, Tuner

Tensor = torch.Tensor
_ADAM_BYTES = 8  # fp32 moments of one weight


class FastStep:
    """Takes the place of compute_loss and backward."""

    def __init__(self, fast: FastModel, tuner: Tuner | None) -> None:
        self.fast = fast
        self._steps = MicroSteps(fast)
        self._tuner = tuner

    def __call__(self, inputs: Mapping[str, Tensor], num_items: Tensor | float) -> Tensor:
        """Loss of a collated batch on the CPU (B, S) over `num_items`; adds to every adapter weight's `.grad`.

        Raises torch.OutOfMemoryError when even the lowest policy does not fit, or gradients were half written.
        """
        batch = make_batch(inputs["input_ids"], inputs["labels"], inputs["position_ids"])
        run = lambda: self._steps(batch, num_items)  # noqa: E731
        try:
            return self._tuner(run, len(batch.input_ids)) if self._tuner else run()
        except torch.OutOfMemoryError:
            self.release()
            raise

    def use_fp8(self, inputs: Mapping[str, Tensor]) -> str:
        """Multiply the base in FP8 where that changes little on these rows (B, S); the sentence says so or why not."""
        return use_fp8(
            self.fast, make_batch(inputs["input_ids"], inputs["labels"], inputs["position_ids"])
        )

    def switch_fp8(self, *, is_used: bool) -> None:
        """Without looking at what it changes."""
        switch_fp8(self.fast, is_used=is_used)

    @property
    def is_fp8(self) -> bool:
        return self.fast.linears[0].is_fp8

    def release(self) -> None:
        self._steps.release()


def attach(
    model: PeftModel, file: Path | None = None, *, on_cpu: bool = False
) -> tuple[FastStep | None, str]:
    """(the fast step or None, a sentence that says what is done or why not).

    Call it when the adapter's weights are where they stay. file: where policies are remembered.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return None, "The plain path is used: there is more than one process."
    base = model.get_base_model()
    where = next(base.parameters()).device
    embed = move_embedding_to_host(base)  # first: the comparison needs the room
    report = apply(model, ActivationPolicy.LAYER, on_cpu=on_cpu)
    fast = report.model
    if fast is None:
        if embed is not None:
            move_embedding_back(base, embed, where)
        return None, report.text
    if fast.device.type != "cuda":
        return FastStep(fast, None), report.text
    torch.cuda.empty_cache()
    return FastStep(fast, Tuner(fast, _memory(fast), file, _key(model))), report.text


def _memory(fast: FastModel) -> Memory:
    free, total = torch.cuda.mem_get_info(fast.device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(fast.device) * total)
    cap = min(free + torch.cuda.memory_reserved(fast.device), allowed)
    return Memory(cap, _ADAM_BYTES * fast.gradients.flat.numel())


def _key(model: PeftModel) -> str:
    """A policy holds for one shape of model and adapter, one GPU with its memory, one set of versions."""
    import triton  # type: ignore

    config: Any = model.get_base_model().config
    free, _ = torch.cuda.mem_get_info()
    parts = [
        config.model_type, config.hidden_size, config.intermediate_size, config.num_hidden_layers,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        torch.cuda.get_device_name(), f"{free / 2**30:.0f}GiB", torch.__version__,
        triton.__version__,
    ]  # fmt: skip
    return " ".join(str(p).replace(" ", "_") for p in parts)
