"""Heal: a short distillation of the adapter towards the 16-bit model's own next-word probabilities, before the task.

In the manner of RILQ (arXiv 2412.01129), which matches last hidden states; ours matches what the head makes of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax

from qlora_space.lowbit.shards import logits_of
from qlora_space.lowbit.stream import Windows
from qlora_space.plan.low_bit import HEAL_STEPS, HEAL_TOKENS

Progress = Callable[[int, int, float], object]
_WARM_UP = 0.1
_LOGITS_AT_ONCE = 512


@dataclass(frozen=True)
class HealRecipe:
    steps: int = HEAL_STEPS
    tokens_per_step: int = HEAL_TOKENS
    learning_rate: float = 2e-4
    max_grad_norm: float = 1.0


def heal(
    model: nn.Module,
    windows: Windows,
    teacher: torch.Tensor,
    recipe: HealRecipe,
    progress: Progress = lambda done, total, kl: None,
) -> list[float]:
    """Train what is trainable in `model` on the calibration windows; returns KL per step, nats per token.

    `model` is a peft model over a LowBitLinear base; teacher (N, L, H) are the 16-bit model's last hidden states.
    """
    count, length = windows.calibration, windows.ids.shape[1]
    per_step = max(1, min(count, recipe.tokens_per_step // length))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=_WARM_UP,
        anneal_strategy="cos", cycle_momentum=False,
    )  # fmt: skip
    order, losses, was_training = _Shuffled(count), [], model.training
    model.train()
    for step in range(recipe.steps):
        losses.append(_backward(model, windows, teacher, order.take(per_step)))
        nn.utils.clip_grad_norm_(weights, recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress(step + 1, recipe.steps, losses[-1])
    model.train(was_training)
    return losses


def _backward(model: Any, windows: Windows, teacher: torch.Tensor, rows: torch.Tensor) -> float:
    """Mean KL of some windows; the logits exist for a few hundred tokens at a time."""
    base = model.get_base_model()
    head = base.get_output_embeddings().weight
    here, dtype = head.device, head.dtype
    counted = windows.is_text[rows].to(here)
    ids = windows.ids[rows].to(here)
    states = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[counted]
    wanted = teacher[rows].to(here, dtype)[counted]
    leaf = states.detach().requires_grad_()
    total = 0.0
    for own, theirs in zip(leaf.split(_LOGITS_AT_ONCE), wanted.split(_LOGITS_AT_ONCE), strict=True):
        with torch.no_grad():
            target = log_softmax(logits_of(base, theirs).float(), -1)
        said = log_softmax(logits_of(base, own).float(), -1)
        loss = kl_div(said, target, reduction="sum", log_target=True)
        (loss / len(states)).backward()
        total += float(loss.detach()) / len(states)
    states.backward(leaf.grad)
    return total


class _Shuffled:
    """Numbers below count in random order, all once before any twice."""

    def __init__(self, count: int) -> None:
        self._count, self._left = count, torch.empty(0, dtype=torch.long)
        self._generator = torch.Generator().manual_seed(0)

    def take(self, wanted: int) -> torch.Tensor:
        while len(self._left) < wanted:
            more = torch.randperm(self._count, generator=self._generator)
            self._left = torch.cat([self._left, more])
        taken, self._left = self._left[:wanted], self._left[wanted:]
        return taken
