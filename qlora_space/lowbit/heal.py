"""Heal: a short distillation of the adapter towards the 16-bit model's own next-word probabilities, before the task.

In the manner of RILQ (arXiv 2412.01129), which matches last hidden states; ours matches what the head makes of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax

Progress = Callable[[int, int, float], object]
_WARM_UP = 0.1


@dataclass(frozen=True)
class HealRecipe:
    steps: int = 120
    rows_per_step: int = 4
    learning_rate: float = 5e-4
    max_grad_norm: float = 1.0


def heal(
    model: nn.Module,
    ids: torch.Tensor,
    is_text: torch.Tensor,
    teacher: torch.Tensor,
    head: nn.Module,
    recipe: HealRecipe,
    progress: Progress = lambda done, total, kl: None,
) -> list[float]:
    """Train what is trainable in `model`; returns KL per step, nats per token.

    ids and is_text (N, L); teacher (N, L, H) last hidden states of the 16-bit model; `head` makes logits of them.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=_WARM_UP,
        anneal_strategy="cos", cycle_momentum=False,
    )  # fmt: skip
    generator, here, losses = torch.Generator().manual_seed(0), head.weight.device, []
    was_training = model.training
    model.train()
    order = torch.empty(0, dtype=torch.long)
    for step in range(recipe.steps):
        while len(order) < recipe.rows_per_step:
            order = torch.cat([order, torch.randperm(len(ids), generator=generator)])
        rows, order = order[: recipe.rows_per_step], order[recipe.rows_per_step :]
        counted = is_text[rows].to(here)
        logits = model(input_ids=ids[rows].to(here), use_cache=False).logits[counted]
        with torch.no_grad():
            wanted = log_softmax(
                head(teacher[rows].to(here, head.weight.dtype))[counted].float(), -1
            )
        loss = kl_div(
            log_softmax(logits.float(), -1), wanted, reduction="batchmean", log_target=True
        )
        loss.backward()
        nn.utils.clip_grad_norm_(weights, recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        progress(step + 1, recipe.steps, losses[-1])
    model.train(was_training)
    return losses
