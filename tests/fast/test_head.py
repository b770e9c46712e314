"""The head never holds more than one chunk of logits."""

from typing import Any

import torch

from qlora_space.fast.head import Head
from tests.live_bytes import LiveBytes

VOCABULARY, HIDDEN, ROWS = 4096, 16, 2048


class _AtEachProduct(LiveBytes):
    """Bytes of logits that are alive when a product with the head has been made."""

    def __init__(self) -> None:
        super().__init__(least_width=VOCABULARY)
        self.seen: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.mm.default and out.shape[-1] == VOCABULARY:
            self.seen.append(self.now)
        return out


def test_the_logits_of_a_chunk_are_gone_when_those_of_the_next_are_made() -> None:
    head = Head(torch.randn(VOCABULARY, HIDDEN), torch.ones(HIDDEN), 1e-6, 0.0)
    x, targets = torch.randn(ROWS, HIDDEN), torch.arange(ROWS)
    with torch.no_grad(), _AtEachProduct() as live:
        head.loss_and_grad(x, torch.arange(ROWS), targets, torch.tensor(float(ROWS)))
    chunk = ROWS // 4 * VOCABULARY * 4
    assert live.seen == [chunk] * 4
