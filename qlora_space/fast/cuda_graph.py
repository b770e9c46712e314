"""Micro-steps of a FastModel; where the step is too short for the CPU to keep up, as one captured CUDA graph.

A micro-step launches about 25 kernels a layer. With few tokens the GPU ends each before the CPU has launched the next;
a graph launches them all at once. It replays the same addresses, so parameters, gradients and inputs stay where they
are, and each shape of a batch needs a graph of its own: `Batch.padded` makes few shapes of many, and one is captured
when it comes the second time.
"""

import torch

from qlora_space.fast.batch import Batch
from qlora_space.fast.model import FastModel
from qlora_space.fast.policies import ActivationPolicy

Tensor = torch.Tensor
_MAX_GRAPHS = 8
# Tokens times hidden size, below which launching kernels one by one takes longer than running them.
_LAUNCH_BOUND = 2**26


class MicroSteps:
    """Launches, captures or replays; holds at most eight graphs, all with the same pool of memory."""

    def __init__(self, fast: FastModel) -> None:
        self.fast = fast
        self._graphs: dict[tuple, _Captured] = {}
        self._seen: set[tuple] = set()
        self._pool = None
        self._can_capture = fast.device.type == "cuda" and not fast.is_base_on_host
        self._policy = fast.policy
        self.why_not_captured = ""

    @property
    def num_captured(self) -> int:
        """Graphs that are held."""
        return len(self._graphs)

    def __call__(self, batch: Batch, num_items: Tensor | float) -> Tensor:
        """Summed loss over `num_items`, one fp32 number on the device; gradients are added. `batch` is on the CPU."""
        fast, batch = self.fast, batch.padded()
        self._release_other_policies()
        fast.begin_micro_step()
        divisor = torch.as_tensor(num_items, dtype=fast.gradients.flat.dtype).reshape(())
        tensors = tuple(self._to_device(t) for t in (*batch.tensors, divisor))
        key = (*batch.shape, fast.policy)
        if key in self._graphs:
            return self._graphs[key].run(tensors)
        if (
            key in self._seen
            and self._is_worth_capturing(batch)
            and self._capture(key, batch, tensors)
        ):
            return self._graphs[key].run(tensors)
        self._seen.add(key)
        return fast.add_gradients(batch.with_tensors(tensors[:-1]), tensors[-1])

    def _release_other_policies(self) -> None:
        """Graphs of another policy would hold its memory."""
        if self.fast.policy is not self._policy:
            self.release()
            self._policy = self.fast.policy

    def release(self) -> None:
        """Free the memory of all captured steps and cached weights; the next step makes them again."""
        if self._graphs:
            torch.cuda.synchronize()  # the last one may not have been done yet
        self._graphs.clear()
        self._pool = None
        self.fast.release_weights()

    def _to_device(self, tensor: Tensor) -> Tensor:
        device = self.fast.device
        if device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()  # else the copy waits for all work before it
        return tensor.to(device, non_blocking=True)

    def _is_worth_capturing(self, batch: Batch) -> bool:
        fast = self.fast
        is_short = len(batch.input_ids) * fast.head.weight.shape[1] <= _LAUNCH_BOUND
        is_possible = self._can_capture and fast.policy >= ActivationPolicy.LAYER
        return is_short and is_possible and len(self._graphs) < _MAX_GRAPHS

    def _capture(self, key: tuple, batch: Batch, tensors: tuple[Tensor, ...]) -> bool:
        """Capture it, which computes nothing. False where an operation waits for the GPU, or memory is short."""
        inputs = tuple(t.clone() for t in tensors)
        torch.cuda.empty_cache()  # a graph has memory of its own, and the steps before leave theirs
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                loss = self.fast.add_gradients(batch.with_tensors(inputs[:-1]), inputs[-1])
        except RuntimeError as error:
            self._can_capture = self.fast.is_in_backward = False
            self.why_not_captured = str(error).split("\n")[0]
            return False
        self._pool = graph.pool()
        self._graphs[key] = _Captured(graph, inputs, loss)
        return True


class _Captured:
    """A graph with the tensors that it reads and the loss that it writes."""

    def __init__(
        self, graph: torch.cuda.CUDAGraph, inputs: tuple[Tensor, ...], loss: Tensor
    ) -> None:
        self._graph, self._inputs, self._loss = graph, inputs, loss

    def run(self, tensors: tuple[Tensor, ...]) -> Tensor:
        for own, given in zip(self._inputs, tensors, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._loss.clone()
