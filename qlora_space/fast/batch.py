"""What a micro-step needs to know of its rows, worked out on the CPU: nothing later waits for the GPU."""

from dataclasses import dataclass

import torch

from qlora_space.fast.attention import Documents

Tensor = torch.Tensor
_IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """All documents one after the other, T tokens; rows: (n,) positions that predict a trained token."""

    input_ids: Tensor
    position_ids: Tensor
    rows: Tensor
    targets: Tensor
    documents: Documents

    def to(self, device: torch.device) -> "Batch":
        move = lambda t: t.to(device, non_blocking=True)  # noqa: E731
        docs = Documents(move(self.documents.starts), self.documents.lengths)
        parts = (self.input_ids, self.position_ids, self.rows, self.targets)
        return Batch(*(move(t) for t in parts), docs)  # type: ignore[arg-type]


def make_batch(input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Batch:
    """From (B, S) tensors on the CPU; position ids start again at 0 with every document.

    Documents without a trained token (padding is one) change neither loss nor gradients and are left out.
    """
    ids, labels, positions = (t.reshape(-1).cpu() for t in (input_ids, labels, position_ids))
    begins = positions == 0
    document = begins.cumsum(0) - 1
    is_trained = (labels != _IGNORED) & ~begins
    has_trained = torch.zeros(int(document[-1]) + 1, dtype=torch.bool)
    has_trained[document[is_trained]] = True
    keep = has_trained[document]
    ids, labels, positions, is_trained = (t[keep] for t in (ids, labels, positions, is_trained))
    starts = torch.cat([(positions == 0).nonzero()[:, 0], torch.tensor([len(ids)])])
    trained = is_trained.nonzero()[:, 0]
    docs = Documents(starts.to(torch.int32), tuple(starts.diff().tolist()))
    return Batch(ids, positions, trained - 1, labels[trained], docs)
