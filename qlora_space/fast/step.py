"""attach(): the fast step of a peft model, to be called in the place of compute_loss and backward.

step, text = attach(model)                  # step is None where the plain step stays; text says why
loss = step(inputs, num_items)              # adds to the `.grad` of every adapter weight
optimizer.step(); optimizer.zero_grad()
step.detach()                               # the model is as it was, with the weights of now
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from qlora_space.fast.autotune import MemoryBudget, PolicyTuner
from qlora_space.fast.batch import make_batch
from qlora_space.fast.cuda_graph import MicroSteps
from qlora_space.fast.embedding import move_embedding_back, move_embedding_to_host
from qlora_space.fast.limits import Unsupported
from qlora_space.fast.model import FastModel, build_checked, switch_fp8, use_fp8
from qlora_space.fast.policies import ActivationPolicy

Tensor = torch.Tensor
_ADAM_BYTES = 8  # fp32 moments of one weight


class FastStep:
    """Computes the loss of a micro-batch and adds its gradients, until it is detached."""

    def __init__(
        self,
        fast: FastModel,
        tuner: PolicyTuner | None,
        restore_model: Callable[[], None] = lambda: None,
    ) -> None:
        self._steps: MicroSteps | None = MicroSteps(fast)
        self._tuner = tuner
        self._restore_model = restore_model

    def __call__(self, inputs: Mapping[str, Tensor], num_items: Tensor | float) -> Tensor:
        """Summed cross-entropy of a micro-batch in nats, over `num_items`; adds its gradients to the adapters' `.grad`.

        inputs: `input_ids`, `labels` and `position_ids`, int64 (B, S), best on the CPU; others are ignored. Position
        ids start again at 0 with every document, and documents do not see each other; a label of -100, and that of a
        document's first token, is not trained. `packed_inputs` makes them from padded batches.
        num_items: trained tokens of the whole update, as transformers counts `num_items_in_batch`.
        Returns one number on the model's device, fp32 (fp64 for a model in fp64), without waiting for it.

        Raises OutOfMemoryError (torch's) where even the policy that keeps least does not fit, or where memory ran out
        when part of the gradients was written; RuntimeError once it is detached.
        """
        steps = self._attached_steps()
        batch = make_batch(inputs["input_ids"], inputs["labels"], inputs["position_ids"])
        run = lambda: steps(batch, num_items)  # noqa: E731
        try:
            return self._tuner(run, len(batch.input_ids)) if self._tuner else run()
        except torch.OutOfMemoryError:
            self.release()
            raise

    @property
    def fast(self) -> FastModel:
        """Layers, parameters and gradients of the model. Raises RuntimeError once it is detached."""
        return self._attached_steps().fast

    @property
    def is_attached(self) -> bool:
        """False from `detach` on."""
        return self._steps is not None

    def use_policy(self, policy: ActivationPolicy) -> None:
        """Keep what `policy` says from the next micro-batch on, instead of finding out what the GPU has room for."""
        self.fast.policy = policy
        self._tuner = None

    def use_fp8(self, inputs: Mapping[str, Tensor]) -> str:
        """Multiply the base in FP8 where that changes little on these rows (B, S); the sentence says so or why not.

        The bounds, 0.5 % of the loss and half of the gradients' norm, are in model.py.
        """
        return use_fp8(
            self.fast, make_batch(inputs["input_ids"], inputs["labels"], inputs["position_ids"])
        )

    def switch_fp8(self, *, is_used: bool) -> None:
        """As `use_fp8`, without measuring what it changes."""
        switch_fp8(self.fast, is_used=is_used)

    @property
    def is_fp8(self) -> bool:
        """Whether the base is multiplied in FP8."""
        return self.fast.linears[0].is_fp8

    def release(self) -> None:
        """Free the GPU memory of captured steps and cached weights, for evaluations; the next step makes them again."""
        if self._steps is not None:
            self._steps.release()

    def detach(self) -> None:
        """Leave the model as `attach` found it, with the adapter's weights of now; the step cannot be called again.

        An embedding table that was moved to host memory is on its device again, in the same module and parameter.
        Gradients are None, captured steps and cached weights are freed. Does nothing the second time.
        """
        if self._steps is None:
            return
        self.release()
        self.fast.gradients.clear()
        self._steps = self._tuner = None
        self._restore_model()

    def _attached_steps(self) -> MicroSteps:
        if self._steps is None:
            raise RuntimeError("This fast step is detached from its model. Attach it again.")
        return self._steps


class Attached(NamedTuple):
    """step is None where the plain step stays; text is one sentence that says what is done, or why not."""

    step: FastStep | None
    text: str


def attach(
    model: PeftModel, policies_file: Path | None = None, *, on_cpu: bool = False
) -> Attached:
    """A fast step for the model, if its loss and gradients on two short random documents are those of the plain one.

    Supported: causal LMs whose decoder layers are those of Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3 or Phi-3; one
    LoRA adapter of rank 64 or less in fp32 on every linear of every layer, without dropout, bias or DoRA, and nothing
    else trained; one process; on a GPU bf16 over a base of 4 bits (bitsandbytes' NF4 and FP4) or fewer. `text` names
    what stands in the way.

    Call it when the adapter's weights are fp32 and on their device. Gradients are dropped. On a GPU, an embedding table
    that is not the head's moves to host memory, as a step needs a few rows of it, until `FastStep.detach`.

    policies_file: JSON in which the best activation policy of a shape and GPU is remembered, for the next run.
    on_cpu: use it on a CPU, too, where it is exact and not faster: for tests.
    Raises torch.OutOfMemoryError where the comparison does not fit.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Attached(None, "The plain path is used: there is more than one process.")
    base: Any = model.get_base_model()
    device = next(base.parameters()).device
    embedding = move_embedding_to_host(base)  # first: the comparison needs the room

    def restore() -> None:
        if embedding is not None:
            move_embedding_back(base, embedding, device)

    try:
        fast, difference = build_checked(model, ActivationPolicy.LAYER, on_cpu=on_cpu)
    except BaseException as error:
        restore()
        if isinstance(error, Unsupported):
            return Attached(None, f"The plain path is used: {error}.")
        raise
    text = f"{len(fast.layers)} fused layers; gradients within {difference:.1%}."
    if fast.device.type != "cuda":
        return Attached(FastStep(fast, None, restore), text)
    torch.cuda.empty_cache()
    tuner = PolicyTuner(fast, _memory_budget(fast), policies_file, _key(model))
    return Attached(FastStep(fast, tuner, restore), text)


def _memory_budget(fast: FastModel) -> MemoryBudget:
    free, total = torch.cuda.mem_get_info(fast.device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(fast.device) * total)
    cap = min(free + torch.cuda.memory_reserved(fast.device), allowed)
    return MemoryBudget(cap, _ADAM_BYTES * fast.gradients.flat.numel())


def _key(model: PeftModel) -> str:
    """A policy holds for one shape of model and adapter, one GPU with its memory, one set of versions."""
    import triton  # type: ignore

    base: Any = model.get_base_model()
    config = base.config.get_text_config()
    free, _ = torch.cuda.mem_get_info()
    parts = [
        config.model_type, config.hidden_size, config.intermediate_size, config.num_hidden_layers,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        torch.cuda.get_device_name(), f"{free / 2**30:.0f}GiB", torch.__version__,
        triton.__version__,
    ]  # fmt: skip
    return " ".join(str(p).replace(" ", "_") for p in parts)
