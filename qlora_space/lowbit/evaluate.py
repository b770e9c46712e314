"""What few bits cost: perplexity, KL and top-1 agreement with the 16-bit model on held-out text."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel

from qlora_space.lowbit.architecture import lm_logits
from qlora_space.lowbit.windows import Windows

_TOKENS_AT_ONCE = 512  # whose logits exist in fp32, as in heal


@dataclass(frozen=True)
class Evaluation:
    """A model beside its 16-bit original, over all tokens of held-out text except the first of each window.

    perplexity: exp of the mean loss in nats a token; infinite or not a number for a model that is broken.
    kl: nats a token from the 16-bit model's distribution to this one's. top1: share of tokens with the same argmax.
    """

    perplexity: float
    kl: float
    top1: float


@dataclass(frozen=True)
class ReferenceEvaluator:
    """Compares models with a 16-bit one of which only the last hidden states and the head are needed.

    ids, is_text: held-out windows (N, L). teacher_states: (N, L, H) of the 16-bit model, after the final norm.
    model: its head makes logits of them; packing a base leaves the head in 16 bits, so the packed base will do.
    """

    ids: torch.Tensor
    is_text: torch.Tensor
    teacher_states: torch.Tensor
    model: PreTrainedModel

    @classmethod
    def on_heldout(
        cls, windows: Windows, teacher_states: torch.Tensor, model: PreTrainedModel
    ) -> "ReferenceEvaluator":
        """On those of the windows that are not calibrated on; teacher_states are those of all windows."""
        heldout = slice(windows.num_calibration, None)
        return cls(windows.ids[heldout], windows.is_text[heldout], teacher_states[heldout], model)

    @torch.no_grad()
    def reference(self) -> Evaluation:
        """The 16-bit model itself."""
        loss = tokens = 0.0
        for _, teacher, targets in self._rows():
            pieces = (part.split(_TOKENS_AT_ONCE) for part in (teacher, targets))
            for states, next_ids in zip(*pieces, strict=True):
                log_p = log_softmax(lm_logits(self.model, states).float(), -1)
                loss -= float(log_p.gather(1, next_ids[:, None]).sum())
            tokens += len(targets)
        return Evaluation(_exp(loss / max(tokens, 1)), kl=0.0, top1=1.0)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> Evaluation:
        """A model with the same vocabulary, with an adapter or without; it should be in eval mode."""
        loss = kl = hits = tokens = 0.0
        for row, teacher, targets in self._rows():
            ids = self.ids[row : row + 1].to(targets.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            logits = logits[self.is_text[row, 1:].to(logits.device)]
            pieces = (part.split(_TOKENS_AT_ONCE) for part in (teacher, targets, logits))
            for states, next_ids, part in zip(*pieces, strict=True):
                log_p = log_softmax(lm_logits(self.model, states).float(), -1)
                log_q = log_softmax(part.float(), -1)
                loss -= float(log_q.gather(1, next_ids[:, None]).sum())
                kl += float((log_p.exp() * (log_p - log_q)).sum())
                hits += float((log_p.argmax(-1) == log_q.argmax(-1)).sum())
            tokens += len(targets)
        tokens = max(tokens, 1)
        return Evaluation(_exp(loss / tokens), kl / tokens, hits / tokens)

    def _rows(self) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Row by row: its number, the teacher's states (T, H) and the next token's id (T) at each of T tokens."""
        head: Any = self.model.get_output_embeddings()
        for row in range(len(self.ids)):
            counted = self.is_text[row, 1:]
            states = self.teacher_states[row, :-1][counted]
            targets = self.ids[row, 1:][counted]
            yield (
                row,
                states.to(head.weight.device, head.weight.dtype),
                targets.to(head.weight.device),
            )


def _exp(mean: float) -> float:
    return math.exp(mean) if not mean > 700 else math.inf
