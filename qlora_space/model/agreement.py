"""How far a model is from another one: the logits of both at the same tokens of held-out answers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import nn
from torch.nn.functional import log_softmax

from qlora_space.core.export import Agreement
from qlora_space.data.prepared import IGNORED_LABEL

_MOST_TOKENS = 512
_MOST_ROWS = 64


@dataclass(frozen=True)
class AnsweredRow:
    """Ids (T) of prompt and answer, and the first positions (A) whose logits predict a token of the answer."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]


def answered_rows(data_folder: Path, most_tokens: int = _MOST_TOKENS) -> list[AnsweredRow]:
    """The first held-out rows of a run, of its training rows where none are held out; up to about so many tokens of
    answers. Empty where the data is gone."""
    for name in ("eval.arrow", "train.arrow"):
        if (data_folder / name).is_file() and (rows := _rows(data_folder / name, most_tokens)):
            return rows
    return []


def _rows(file: Path, most_tokens: int) -> list[AnsweredRow]:
    rows: list[AnsweredRow] = []
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as batches:
        for batch in batches:
            for packed in batch.to_pylist():
                rows += _documents(packed)
                if len(rows) >= _MOST_ROWS or sum(len(r.positions) for r in rows) >= most_tokens:
                    return rows
    return rows


def _documents(packed: dict[str, Any]) -> list[AnsweredRow]:
    """Of a packed row, those with something to answer."""
    found, start = [], 0
    for length in packed["seq_lengths"]:
        ids = packed["input_ids"][start : start + length]
        labels = packed["labels"][start : start + length]
        positions = tuple(i for i in range(length - 1) if labels[i + 1] != IGNORED_LABEL)
        if positions:
            found.append(AnsweredRow(tuple(ids), positions[:_MOST_TOKENS]))
        start += length
    return found


@torch.inference_mode()
def answer_logits(model: nn.Module, rows: Sequence[AnsweredRow]) -> list[torch.Tensor]:
    """For each row (A, V) on the CPU, in the dtype that the model gives; rows one by one, in eval mode."""
    model.eval()
    device = next(p.device for p in model.parameters() if p.device.type != "meta")
    found = []
    for row in rows:
        ids = torch.tensor([row.ids], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0]
        found.append(logits[list(row.positions)].cpu())
    return found


def agreement(
    rows: Sequence[AnsweredRow], reference: Sequence[torch.Tensor], found: Sequence[torch.Tensor]
) -> Agreement:
    """Of logits (A, V) of the same rows. A vocabulary that was padded by one of them is compared as far as both go."""
    sums = torch.zeros(5, dtype=torch.float64)  # tokens, hits, KL, loss, loss of the reference
    largest = 0.0
    for row, ours, theirs in zip(rows, reference, found, strict=True):
        width = min(ours.shape[-1], theirs.shape[-1])
        p, q = ours[:, :width].float(), theirs[:, :width].float()
        log_p, log_q = log_softmax(p, -1), log_softmax(q, -1)
        targets = torch.tensor([row.ids[at + 1] for at in row.positions])[:, None]
        hits = (p.argmax(-1) == q.argmax(-1)).sum()
        divergence = (log_p.exp() * (log_p - log_q)).sum()
        losses = [-each.gather(1, targets).sum() for each in (log_q, log_p)]
        sums += torch.tensor([len(p), hits, divergence, *losses], dtype=torch.float64)
        difference = float((p - q).abs().max())
        largest = max(largest, difference) if difference == difference else math.nan
    tokens = max(float(sums[0]), 1.0)
    kl, loss, adapter_loss = (_finite(float(total) / tokens) for total in sums[2:])
    return Agreement(
        tokens=int(sums[0]),
        top1=float(sums[1]) / tokens,
        kl=None if kl is None else max(kl, 0.0),
        largest_logit_difference=_finite(largest),
        loss=loss,
        adapter_loss=adapter_loss,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
