"""Is the low-bit base degraded, or broken? Perplexity, KL and top-1 agreement to the 16-bit model on held-out text."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import log_softmax

_BROKEN_PPL_RATIO = 10.0
_BROKEN_TOP1 = 1 / 3
_ROWS_AT_ONCE = 1


@dataclass(frozen=True)
class Quality:
    """Over all tokens of text but the first of each window. KL in nats per token from the 16-bit model to this one."""

    ppl: float
    kl: float
    top1: float


@dataclass(frozen=True)
class Verdict:
    is_broken: bool
    why: str
    remedies: tuple[str, ...] = ()


@torch.no_grad()
def quality(
    model: nn.Module,
    ids: torch.Tensor,
    is_text: torch.Tensor,
    teacher: torch.Tensor,
    head: nn.Module,
) -> Quality:
    """ids and is_text (N, L); teacher (N, L, H) last hidden states of the 16-bit model; `head` makes logits of them."""
    loss = kl = hits = 0.0
    tokens = 0
    for row in range(0, len(ids), _ROWS_AT_ONCE):
        part = slice(row, row + _ROWS_AT_ONCE)
        here = head.weight.device
        counted = is_text[part, 1:].to(here)
        logits = model(input_ids=ids[part].to(here), use_cache=False).logits[:, :-1][counted]
        own = log_softmax(logits.float(), -1)
        wanted = log_softmax(
            head(teacher[part, :-1].to(here, head.weight.dtype))[counted].float(), -1
        )
        targets = ids[part, 1:].to(here)[counted]
        loss -= float(own.gather(1, targets[:, None]).sum())
        kl += float((wanted.exp() * (wanted - own)).sum())
        hits += float((wanted.argmax(-1) == own.argmax(-1)).sum())
        tokens += len(targets)
    mean = loss / tokens
    return Quality(math.exp(mean) if mean < 700 else math.inf, kl / tokens, hits / tokens)


def verdict(reference_ppl: float, measured: Quality, tried: Iterable[str], bits: int) -> Verdict:
    """Broken: not finite, ten times the perplexity, or less than a third of the next words the same.

    `tried` names what was done already ("init", "heal"); remedies come cheapest first.
    """
    ratio = measured.ppl / reference_ppl
    if math.isfinite(ratio) and ratio <= _BROKEN_PPL_RATIO and measured.top1 >= _BROKEN_TOP1:
        return Verdict(False, f"perplexity {measured.ppl:.1f}, {ratio:.2f} times that at 16 bits")
    done = set(tried)
    remedies = [
        text
        for name, text in (
            ("init", "start from the EoRA correction (init=eora)"),
            ("heal", "heal before training (heal=on)"),
            ("groups", "use smaller groups (group_size=32)"),
            ("bits", f"use {bits + 1} bits"),
            ("base", "choose a larger base"),
        )
        if name not in done
    ]
    why = (
        f"At {bits} bits this base is broken: perplexity {measured.ppl:.3g}, at 16 bits {reference_ppl:.3g}; "
        f"{measured.top1:.0%} of its next words are those of the 16-bit base."
    )
    return Verdict(True, why, tuple(remedies))
