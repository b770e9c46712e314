"""What a micro-step needs to know of its rows, worked out on the CPU: nothing later waits for the GPU."""

from dataclasses import dataclass

import torch

from qlora_space.fast.attention import Documents

Tensor = torch.Tensor
_IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """All documents one after the other, T tokens; rows: (n,) positions that predict a trained token.

    The tensors of a batch whose `shape` is the same have the same shapes; targets of -100 fill them up.
    """

    input_ids: Tensor
    position_ids: Tensor
    rows: Tensor
    targets: Tensor
    documents: Documents

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (
            *(self.input_ids, self.position_ids, self.rows, self.targets),
            self.documents.starts,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = tuple(len(t) for t in self.tensors)
        return (*sizes, self.documents.longest, self.documents.uniform)

    @property
    def num_trained(self) -> int:
        return int((self.targets != _IGNORED).sum())

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "Batch":
        *parts, starts = tensors
        docs = Documents(starts, self.documents.longest, self.documents.uniform)
        return Batch(*parts, docs)  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "Batch":
        return self.with_tensors(tuple(t.to(device, non_blocking=True) for t in self.tensors))

    def padded(self) -> "Batch":
        """With sizes that come again and again: few shapes to capture, to plan and to tune for.

        The padding is one more document without a target, and empty documents after it.
        """
        tokens = len(self.input_ids)
        extra = _rounded(tokens) - tokens
        starts, docs = self.documents.starts, self.documents
        longest, uniform = docs.longest, docs.uniform
        if extra:
            starts = torch.cat([starts, starts[-1:] + extra])
            longest, uniform = max(longest, extra), 0
        if not uniform:
            longest = min(_power_of_two(longest), tokens + extra)
            starts = _filled(starts, _power_of_two(len(starts)), tokens + extra)
        trained = _rounded(len(self.rows))
        return Batch(
            _filled(self.input_ids, tokens + extra, 0),
            torch.cat([self.position_ids, torch.arange(extra)]),
            # The last token predicts nothing, so nothing is lost where its gradient is written.
            _filled(self.rows, trained, tokens + extra - 1),
            _filled(self.targets, trained, _IGNORED),
            Documents(starts, longest, uniform),
        )


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
    docs = Documents.of(starts.diff().tolist() or [0])
    return Batch(ids, positions, trained - 1, labels[trained], docs)


def _rounded(count: int) -> int:
    """Up by at most a sixteenth, and to a multiple of 128."""
    step = max(128, _power_of_two(count) // 32)
    return -(-count // step) * step


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


def _filled(values: Tensor, size: int, value: int) -> Tensor:
    return torch.cat([values, values.new_full((size - len(values),), value)])
