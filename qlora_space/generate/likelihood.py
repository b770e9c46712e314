"""How likely given texts are under a model, in one pass over each: nothing is generated."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from qlora_space.model import max_rows

_LOGITS_AT_ONCE = 2**27  # 0.8 GiB of them in bf16 and fp32
_MOST_TOKENS_AT_ONCE = 4096


class Scored(NamedTuple):
    """Of each token of a text: its log-probability in nats, the likeliest token there, and by how many nats that is
    likelier."""

    log_probs: list[float]
    likeliest: list[int]
    behind: list[float]


@torch.inference_mode()
def score_texts(model: Any, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scored]:
    """Of each (prompt, text), both as token ids, the text after the prompt, which has a token at least.

    With the adapters that the model has on now. Rows are padded on the right, which no causal model sees.
    """
    lengths = [len(prompt) + len(text) for prompt, text in texts]
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    found: dict[int, Scored] = {}
    tokens = min(_MOST_TOKENS_AT_ONCE, _LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
    while order:
        longest = lengths[order[-1]]
        count = max(1, min(tokens // longest, max_rows(model, longest)))
        order, rows = order[:-count], order[-count:]
        scored = _score_rows(model, [texts[i] for i in rows], longest)
        found |= dict(zip(rows, scored, strict=True))
    return [found[i] for i in range(len(texts))]


def _score_rows(
    model: Any, rows: list[tuple[Sequence[int], Sequence[int]]], width: int
) -> list[Scored]:
    ids = [[*p, *t, *[0] * (width - len(p) - len(t))] for p, t in rows]
    first = min(len(prompt) for prompt, _ in rows) - 1
    batch = torch.tensor(ids, device=model.device)
    logits = model(input_ids=batch, use_cache=False, logits_to_keep=width - first).logits
    return [
        _scored(logits[i, len(prompt) - 1 - first :][: len(text)], text)
        for i, (prompt, text) in enumerate(rows)
    ]


def _scored(logits: torch.Tensor, text: Sequence[int]) -> Scored:
    if not text:
        return Scored([], [], [])
    log_probs = logits.float().log_softmax(-1)
    own = log_probs.gather(1, torch.tensor(list(text), device=logits.device)[:, None])[:, 0]
    best, likeliest = log_probs.max(-1)
    return Scored(own.tolist(), likeliest.tolist(), (best - own).tolist())
