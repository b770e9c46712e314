"""The figures of an optimizer step: loss and gradient norm on their way from the GPU, throughput, memory."""

import math
import resource
import time
from collections import deque
from dataclasses import dataclass
from functools import cache

import psutil
import torch

from qlora_space.core.events import Metric
from qlora_space.core.machine import gpu_bytes_of_this_process
from qlora_space.train.snapshot import TrainState

Tensor = torch.Tensor
_GIB = 2**30
_CONTEXT_GIB = 0.51  # of CUDA on an H200, where NVML does not say (docs/LOWBIT.md)
# A deferred step is reported when the next one has been launched, which may take a moment (a CUDA graph is captured):
# over a shorter span, one step would get the seconds that another one lacks.
_THROUGHPUT_SPAN_SECONDS = 1.0
_LONGEST_DEFERRED_SECONDS = 5.0


@dataclass(frozen=True)
class StepResult:
    """An optimizer step that is queued on the device, or done. Token counts are those of the run up to it."""

    learning_rate: float
    tokens_seen: int
    trained_tokens: int
    _figures: Tensor  # loss and gradient norm, fp32 (2,) in host memory; valid once `_arrived` is
    _arrived: torch.cuda.Event | None

    @classmethod
    def of(
        cls, loss: Tensor, norm: Tensor, learning_rate: float, tokens_seen: int, trained_tokens: int
    ) -> "StepResult":  # fmt: skip
        """loss and norm: scalars of the whole step, on its device. Starts their copy and does not wait for it."""
        figures = torch.stack([t.detach().float().reshape(()) for t in (loss, norm)])
        arrived = None
        if figures.is_cuda:
            on_gpu, figures = figures, torch.empty(2, pin_memory=True)
            figures.copy_(on_gpu, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)
            arrived.record()
        return cls(learning_rate, tokens_seen, trained_tokens, figures, arrived)

    @property
    def token_counts(self) -> dict[str, int]:
        return {"tokens_seen": self.tokens_seen, "trained_tokens": self.trained_tokens}

    def read(self) -> tuple[float, float]:
        """Loss in nats per trained token, and gradient norm before clipping. Waits for the GPU."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, norm = self._figures.tolist()
        return loss, norm


class Throughput:
    """Seconds and tokens of the newest steps, without what is done between them."""

    def __init__(self) -> None:
        self.step_seconds = math.nan  # of the newest step
        self._last = (time.monotonic(), 0)
        self._recent: deque[tuple[float, int]] = deque()  # seconds and tokens of steps

    @property
    def has_short_steps(self) -> bool:
        """Worth deferring their metrics. Longer ones are waited for: the few ms in between do not matter, and
        interrupting a run would take a micro-batch more."""
        return self.step_seconds < _LONGEST_DEFERRED_SECONDS

    @property
    def tokens_per_second(self) -> float:
        """Over the newest steps that together took a second; NaN before the first step."""
        if not self._recent:
            return math.nan
        seconds, tokens = (sum(column) for column in zip(*self._recent, strict=True))
        return tokens / seconds

    def start_step(self, tokens_seen: int, spent_seconds: float = 0.0) -> None:
        """A step starts now, or is resumed of which `spent_seconds` are done."""
        self._last = (time.monotonic() - spent_seconds, tokens_seen)

    def end_step(self, tokens_seen: int) -> float:
        """Returns its seconds; the next one starts."""
        now, (then, tokens_then) = time.monotonic(), self._last
        self.step_seconds = max(now - then, 1e-9)
        self._last = (now, tokens_seen)
        self._recent.append((self.step_seconds, tokens_seen - tokens_then))
        span = sum(seconds for seconds, _ in self._recent)
        while span - self._recent[0][0] >= _THROUGHPUT_SPAN_SECONDS:
            span -= self._recent.popleft()[0]
        return self.step_seconds


def step_metric(
    state: TrainState, result: StepResult, throughput: Throughput, epochs_per_step: float
) -> Metric:
    """The event of a step that was just finished; figures that are not finite are left out."""
    loss, norm = result.read()
    device, step = state.model.device.type, state.progress.step
    values = {
        "loss": loss,
        "learning_rate": result.learning_rate,
        "grad_norm": norm,
        "epoch": step * epochs_per_step,
        "tokens_per_second": throughput.tokens_per_second,
        "memory_gib": memory_now_gib(device),
        "peak_gib": memory_peak_gib(device),
        "card_gib": card_gib(device),
    }
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    return Metric(step=step, total_steps=state.total_steps, values=finite)


def memory_now_gib(device: str) -> float:
    """Tensors on the GPU and CUDA's context; on a CPU, resident memory of this process."""
    if device == "cuda":
        return torch.cuda.memory_allocated() / _GIB + _context_gib()
    return psutil.Process().memory_info().rss / _GIB


def memory_peak_gib(device: str) -> float:
    """The most that `memory_now_gib` has been in this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / _GIB + _context_gib()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB


def card_gib(device: str) -> float:
    """What nvidia-smi shows of this process: besides `memory_now_gib` what torch keeps to use again, which it gives
    back before it runs out."""
    if device == "cuda":
        return torch.cuda.memory_reserved() / _GIB + _context_gib()
    return memory_now_gib(device)


@cache
def _context_gib() -> float:
    """What CUDA holds of the GPU beside torch's tensors: kernels, its own state. Asked for once, after a first step."""
    held = gpu_bytes_of_this_process()
    return _CONTEXT_GIB if held is None else (held - torch.cuda.memory_reserved()) / _GIB
