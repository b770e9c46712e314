"""Is the low-bit base degraded, or broken? Perplexity, KL and top-1 agreement to the 16-bit model on held-out text."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel

from qlora_space.core.errors import ModelError
from qlora_space.core.events import Gate, QualityPoint
from qlora_space.lowbit.shards import logits_of
from qlora_space.lowbit.stream import Windows
from qlora_space.runs import Quality

_BROKEN_PPL_RATIO = 10.0
_MORE_BITS = {2: 3, 3: 4, 4: 8}
_BROKEN_TOP1 = 1 / 3
_AT_ONCE = 512  # tokens whose logits exist in fp32, as in heal
_ALL_TOO_MUCH, _LOG_OF_ALL_TOO_MUCH = 1e12, 27.0


@dataclass(frozen=True)
class ReferenceEvaluator:
    """What the 16-bit model said to the held-out windows: ids and is_text (N, L), its last hidden states (N, L, H) and
    the model whose head makes logits of them."""

    ids: torch.Tensor
    is_text: torch.Tensor
    teacher: torch.Tensor
    model: PreTrainedModel

    @classmethod
    def of(
        cls, windows: Windows, teacher: torch.Tensor, model: PreTrainedModel
    ) -> "ReferenceEvaluator":
        """The windows that were not calibrated on."""
        held = slice(windows.calibration, None)
        return cls(windows.ids[held], windows.is_text[held], teacher[held], model)

    @torch.no_grad()
    def reference(self) -> QualityPoint:
        """The 16-bit model itself."""
        total = tokens = 0.0
        for states, targets, _ in self._rows():
            for their, words in zip(states.split(_AT_ONCE), targets.split(_AT_ONCE), strict=True):
                wanted = log_softmax(logits_of(self.model, their).float(), -1)
                total -= float(wanted.gather(1, words[:, None]).sum())
            tokens += len(targets)
        return QualityPoint(name="16 bit", ppl=_exp(total / max(tokens, 1)), kl=0.0, top1=1.0)

    @torch.no_grad()
    def measure(
        self, model: nn.Module, name: Literal["quantized", "start", "healed"]
    ) -> QualityPoint:
        """Over all tokens of text but the first of each window."""
        loss = kl = hits = tokens = 0.0
        for states, targets, row in self._rows():
            ids = self.ids[row : row + 1].to(targets.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            said = logits[self.is_text[row, 1:].to(logits.device)]
            pieces = (part.split(_AT_ONCE) for part in (states, targets, said))
            for their, words, mine in zip(*pieces, strict=True):
                wanted = log_softmax(logits_of(self.model, their).float(), -1)
                own = log_softmax(mine.float(), -1)
                loss -= float(own.gather(1, words[:, None]).sum())
                kl += float((wanted.exp() * (wanted - own)).sum())
                hits += float((wanted.argmax(-1) == own.argmax(-1)).sum())
            tokens += len(targets)
        tokens = max(tokens, 1)
        return QualityPoint(
            name=name, ppl=_exp(loss / tokens), kl=_finite(kl / tokens), top1=hits / tokens
        )

    def _rows(self):
        """Row by row: the 16-bit model's states (T, H), the words that follow (T), the row's number."""
        weight: Any = self.model.get_output_embeddings().weight  # type: ignore[union-attr]
        for row in range(len(self.ids)):
            counted = self.is_text[row, 1:]
            states = self.teacher[row, :-1][counted].to(weight.device, weight.dtype)
            targets = self.ids[row, 1:][counted].to(weight.device)
            yield states, targets, row


def _exp(mean: float) -> float:
    return math.exp(mean) if mean < _LOG_OF_ALL_TOO_MUCH else _ALL_TOO_MUCH


def _finite(value: float) -> float:
    """JSON knows no infinity: what is not a number is far beyond broken."""
    return value if math.isfinite(value) else _ALL_TOO_MUCH


def gate_of(quality: Quality) -> Gate:
    """Broken: not finite, ten times the perplexity, or less than a third of the next words the same."""
    whole, last = quality.points[0], quality.points[-1]
    ratio = last.ppl / whole.ppl
    is_sound = ratio <= _BROKEN_PPL_RATIO and last.top1 >= _BROKEN_TOP1
    words = (
        f"perplexity {last.ppl:.3g}, at 16 bits {whole.ppl:.3g}; {100 * last.top1:.0f} % of its next words are those "
        "of the 16-bit base"
    )
    state = "degraded, not broken" if is_sound else "broken"
    is_left_out = quality.init != "zero" and all(r.name != "start" for r in quality.points)
    left_out = (
        f" The {quality.init} repair made it no better and is left out." if is_left_out else ""
    )
    bits = quality.mean_bits or quality.bits
    return Gate(
        bits=bits,
        init=quality.init,
        points=quality.points,
        is_broken=not is_sound,
        why=f"At {bits:g} bits this base is {state}: {words}.{left_out}",
        text=quality.text,
    )


def refuse_broken(gate: Gate, quality: Quality) -> None:
    """Raises ModelError with what was not tried yet, cheapest first."""
    if not gate.is_broken:
        return
    remedies = [
        text
        for text, is_left in (
            ("start from the repair (init: eora)", quality.init == "zero"),
            ("heal before training", not quality.heal),
            ("use groups of 32 (group_size)", quality.group_size > 32),
            (f"use {_MORE_BITS[quality.bits]} bits", True),
            ("choose a larger base", True),
        )
        if is_left
    ]
    raise ModelError(gate.why, "Try, cheapest first: " + "; ".join(remedies) + ".")
