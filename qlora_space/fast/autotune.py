"""Which activation policy to take: the first real micro-steps are measured, and the answer is remembered.

What a policy keeps is known to the byte, so one measured peak gives the peaks of all. Of the policies that fit, the one
that keeps most is the fastest, as it computes least again. Only whether sending activations to host memory beats
computing them again depends on the bus, and must be timed.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from qlora_space.fast.embedding import HostEmbedding
from qlora_space.fast.model import FastModel
from qlora_space.fast.policies import ActivationPolicy, best_fitting, own_bytes, policies_to_time

Tensor = torch.Tensor
_LENGTH_STEP = 1024  # tokens of a micro-step that count as one length
_TRIALS = 3  # micro-steps a policy, of which the fastest counts


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes. cap: what this process may have in all; pending: not allocated yet, such as optimizer states."""

    cap: int
    pending: int


class PolicyTuner:
    """Runs micro-steps, and sets the policy of their model: measured, timed, or as remembered in `file` under `key`."""

    def __init__(self, fast: FastModel, memory: MemoryBudget, file: Path | None, key: str) -> None:
        self._fast, self._memory, self._file, self._key = fast, memory, file, key
        self._trials: list[ActivationPolicy] = []
        self._seconds: dict[ActivationPolicy, list[float]] = {}
        self._is_first = True

    @property
    def is_done(self) -> bool:
        """Whether the policy is chosen: nothing is measured any more, so nothing waits for the GPU."""
        return not self._is_first and not self._trials

    def __call__(self, micro_step: Callable[[], Tensor], tokens: int) -> Tensor:
        """The micro-step's loss; on a lower policy if memory runs out before a gradient was written.

        Raises torch.OutOfMemoryError where that does not help, or comes too late.
        """
        if self._is_first:
            self._load_policy(tokens)
        if self.is_done:
            return self._attempt(micro_step)
        if self._trials:
            self._fast.policy = self._trials[0]
        torch.cuda.synchronize()
        if self._is_first:  # whose peak alone is looked at
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        loss = self._attempt(micro_step)
        torch.cuda.synchronize()
        self._record(time.perf_counter() - started, torch.cuda.max_memory_allocated(), tokens)
        return loss

    def _load_policy(self, tokens: int) -> None:
        """The one that was chosen before for micro-batches of this length."""
        self._key = f"{self._key} {-(-tokens // _LENGTH_STEP) * _LENGTH_STEP} tokens"
        known = _read(self._file).get(self._key, "")
        if known in ActivationPolicy.__members__:
            self._fast.policy, self._is_first = ActivationPolicy[known], False

    def _attempt(self, micro_step: Callable[[], Tensor]) -> Tensor:
        while True:
            try:
                return micro_step()
            except torch.OutOfMemoryError:
                if not self._step_down() or self._fast.is_in_backward:
                    raise

    def _step_down(self) -> bool:
        """One policy lower, for good. False at the lowest."""
        if self._fast.policy is ActivationPolicy.OFFLOAD:
            return False
        self._fast.policy = ActivationPolicy(self._fast.policy - 1)
        self._is_first, self._trials = False, []
        self._save_policy()
        return True

    def _record(self, seconds: float, peak: int, tokens: int) -> None:
        if self._is_first:
            self._is_first = False
            self._trials = self._candidates(peak, tokens)
        elif self._trials:
            policy = self._trials.pop(0)
            self._seconds.setdefault(policy, []).append(seconds)
        if self.is_done:
            if self._seconds:
                self._fast.policy = min(self._seconds, key=lambda p: min(self._seconds[p]))
            self._save_policy()

    def _candidates(self, peak: int, tokens: int) -> list[ActivationPolicy]:
        """Policies to time, each several times; none, and the policy is set, if one is clearly the best."""
        best = self._best_fitting(peak, tokens)
        timed = policies_to_time(best)
        if not timed:
            self._fast.policy = best
        return [policy for policy in timed for _ in range(_TRIALS)]

    def _best_fitting(self, peak: int, tokens: int) -> ActivationPolicy:
        rest = peak - self._own_bytes(self._fast.policy, tokens) + self._memory.pending
        return best_fitting(lambda p: self._own_bytes(p, tokens), rest, self._memory.cap)

    def _own_bytes(self, policy: ActivationPolicy, tokens: int) -> int:
        """The part of the peak that the policy decides."""
        embed, shapes = self._fast.embed, [layer.shape for layer in self._fast.layers]
        table_bytes = embed.num_bytes if isinstance(embed, HostEmbedding) else 0
        return own_bytes(shapes, policy, tokens, table_bytes)

    def _save_policy(self) -> None:
        if self._file is None:
            return
        known = _read(self._file) | {self._key: self._fast.policy.name}
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(known, indent=1))
        temporary.replace(self._file)


def _read(file: Path | None) -> dict[str, str]:
    try:
        return json.loads(file.read_text()) if file else {}
    except (OSError, ValueError):
        return {}
