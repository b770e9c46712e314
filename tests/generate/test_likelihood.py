"""Likelihoods of texts: those of one pass over each alone, whatever stands beside it in a batch."""

import pytest
import torch

from qlora_space.core.demo import BASE_FOLDER
from qlora_space.generate import likelihood
from qlora_space.generate.likelihood import score_texts
from qlora_space.model import load_base

TEXTS = [([5, 6, 7], [8, 9]), ([11], [12, 13, 14, 15, 16]), ([3, 4], []), (list(range(40)), [7])]


def test_a_text_is_as_likely_in_a_batch_as_alone_and_by_definition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_base(BASE_FOLDER, 16, "cpu").float()
    together = score_texts(model, TEXTS)
    monkeypatch.setattr(likelihood, "_MOST_TOKENS_AT_ONCE", 1)
    for (prompt, text), scored, alone in zip(
        TEXTS, together, score_texts(model, TEXTS), strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *text]])).logits[0].log_softmax(-1)
        at = range(len(prompt) - 1, len(prompt) + len(text) - 1)
        own = [float(logits[i, token]) for i, token in zip(at, text, strict=True)]
        assert scored.log_probs == pytest.approx(own, abs=1e-4)
        assert alone.log_probs == pytest.approx(own, abs=1e-4)
        assert scored.likeliest == [int(logits[i].argmax()) for i in at]
        best = [float(logits[i].max()) for i in at]
        assert scored.behind == pytest.approx(
            [b - o for b, o in zip(best, own, strict=True)], abs=1e-4
        )
