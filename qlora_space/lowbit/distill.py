"""Heal: a short distillation of the adapter towards the 16-bit model's next-token distribution, before the task.

In the manner of RILQ (arXiv 2412.01129), which matches last hidden states; ours matches the head's distributions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax

from qlora_space.lowbit.architecture import lm_logits
from qlora_space.lowbit.windows import Windows

Progress = Callable[[int, int, float], object]  # steps done, steps in all, KL of the last one
_WARM_UP = 0.1
_TOKENS_AT_ONCE = 512


@dataclass(frozen=True)
class HealRecipe:
    """AdamW without decay, one cosine cycle. tokens_per_step is rounded down to whole windows, at least one."""

    steps: int
    tokens_per_step: int
    learning_rate: float
    max_grad_norm: float = 1.0


def default_heal_learning_rate(hidden_size: int) -> float:
    """2e-4 for bases of 2,048 and wider, more for narrower ones: hidden**-0.78, an exponent that
    tinker_cookbook/hyperparam_utils.py fits on Llama models."""
    return 2e-4 * max(1.0, (2048 / hidden_size) ** 0.78)


def heal(
    model: nn.Module,
    windows: Windows,
    teacher_states: torch.Tensor,
    recipe: HealRecipe,
    progress: Progress = lambda done, total, kl: None,
) -> list[float]:
    """Train what is trainable in `model` on the calibration windows; returns the KL of each step in nats a token.

    model: a peft model over a packed base. teacher_states: (N, L, H), the 16-bit model's last hidden states.
    """
    count, length = windows.num_calibration, windows.ids.shape[1]
    per_step = max(1, min(count, recipe.tokens_per_step // length))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=_WARM_UP,
        anneal_strategy="cos", cycle_momentum=False,
    )  # fmt: skip
    sampler, losses, was_training = _EpochSampler(count), [], model.training
    model.train()
    for step in range(recipe.steps):
        losses.append(_backward(model, windows, teacher_states, sampler.take(per_step)))
        nn.utils.clip_grad_norm_(weights, recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress(step + 1, recipe.steps, losses[-1])
    model.train(was_training)
    return losses


def _backward(
    model: Any, windows: Windows, teacher_states: torch.Tensor, rows: torch.Tensor
) -> float:
    """Mean KL over the tokens of some windows; the logits exist for a few hundred tokens at a time."""
    base = model.get_base_model()
    head = base.get_output_embeddings().weight
    mask = windows.is_text[rows].to(head.device)
    ids = windows.ids[rows].to(head.device)
    states = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[mask]
    teacher = teacher_states[rows].to(head.device, head.dtype)[mask]
    leaf = states.detach().requires_grad_()
    total = 0.0
    pieces = (part.split(_TOKENS_AT_ONCE) for part in (leaf, teacher))
    for own, theirs in zip(*pieces, strict=True):
        with torch.no_grad():
            log_p = log_softmax(lm_logits(base, theirs).float(), -1)
        log_q = log_softmax(lm_logits(base, own).float(), -1)
        loss = kl_div(log_q, log_p, reduction="sum", log_target=True)
        (loss / len(states)).backward()
        total += float(loss.detach()) / len(states)
    states.backward(leaf.grad)
    return total


class _EpochSampler:
    """Indices below `count` in random order, each once before any comes twice."""

    def __init__(self, count: int) -> None:
        self._count, self._left = count, torch.empty(0, dtype=torch.long)
        self._generator = torch.Generator().manual_seed(0)

    def take(self, wanted: int) -> torch.Tensor:
        while len(self._left) < wanted:
            more = torch.randperm(self._count, generator=self._generator)
            self._left = torch.cat([self._left, more])
        taken, self._left = self._left[:wanted], self._left[wanted:]
        return taken
