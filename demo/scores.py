"""Evaluate a model on the demo's texts: mean loss per token, and the share of answers that are exactly right.

An answer is right if each of its tokens has the highest probability given the tokens before it, which is what greedy
decoding would have generated.
"""

from collections.abc import Sequence
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from demo.chats import CHATS
from demo.text import KINDS, document

ANSWER_START = "<|im_start|>assistant\n"
IGNORED = -100


def padded(rows: Sequence[list[int]], padding: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [padding] * (longest - len(row)) for row in rows])


def logits_and_targets(
    model: PreTrainedModel, ids: Sequence[list[int]], labels: Sequence[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both of shape (rows, longest - 1). Rows are padded on the right, where causal attention cannot see it."""
    with torch.no_grad():
        logits = model(input_ids=padded(ids, 0).to(model.device)).logits[:, :-1].float()
    return logits, padded(labels, IGNORED)[:, 1:].to(logits.device)


def token_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rows: int = 32
) -> tuple[float, int]:
    """The summed loss in nats and the number of predicted tokens over whole texts."""
    total, count = 0.0, 0
    for start in range(0, len(texts), rows):
        ids = tokenizer(list(texts[start : start + rows]), add_special_tokens=False)["input_ids"]
        logits, targets = logits_and_targets(model, ids, ids)
        loss = cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        total, count = total + loss.item(), count + int((targets != IGNORED).sum())
    return total, count


def mean_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> float:
    total, count = token_losses(model, tokenizer, texts)
    return total / count


def answers_right(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chats: Sequence[str], rows: int = 32
) -> float:
    """Share of rendered chats whose last answer is exactly right."""
    right = 0
    for start in range(0, len(chats), rows):
        ids, labels = [], []
        for chat in chats[start : start + rows]:
            head, _, answer = chat.rpartition(ANSWER_START)
            prompt = tokenizer(head + ANSWER_START, add_special_tokens=False)["input_ids"]
            reply = tokenizer(answer.rstrip("\n"), add_special_tokens=False)["input_ids"]
            ids.append(prompt + reply)
            labels.append([IGNORED] * len(prompt) + reply)
        logits, targets = logits_and_targets(model, ids, labels)
        wrong = (logits.argmax(-1) != targets) & (targets != IGNORED)
        right += int((~wrong.any(-1)).sum())
    return right / len(chats)


def report(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int, each: int = 64
) -> str:
    """A table with the loss on every kind of text and, for chats, the share of right answers."""
    lines = []
    for kind in KINDS:
        rng = Random(f"{seed} {kind}")
        texts = [document(rng, kind) for _ in range(each)]
        line = f"{kind:12s} loss {mean_loss(model, tokenizer, texts):.3f}"
        if kind in CHATS:
            line += f"  answers right {answers_right(model, tokenizer, texts):.0%}"
        lines.append(line)
    return "\n".join(lines)
