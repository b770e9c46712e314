"""What a micro-step needs to know of its rows, worked out on the CPU, so that nothing waits for the GPU later.

All rows become one sequence of documents. Padding is left out instead of multiplied, and sizes are rounded so that few
shapes occur (see cuda_graph.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qlora_space.fast.attention import Documents
from qlora_space.fast.limits import Unsupported
from qlora_space.fast.policies import power_of_two, rounded_up

Tensor = torch.Tensor
_IGNORED = -100
_USED = {"input_ids", "labels", "attention_mask", "position_ids"}
# trl's collator works these out from position ids (padding_free), for kernels that are not used here.
_DERIVED = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}


@dataclass(frozen=True)
class Batch:
    """T tokens of all documents, one after the other.

    input_ids, position_ids: int64 (T,); rows: int64 (n,), the tokens before a trained one; targets: int64 (n,), those
    trained tokens, or -100 where `padded` has filled them up.
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
        """Two batches with the same one are computed by the same kernels on tensors of the same shapes."""
        sizes = tuple(len(t) for t in self.tensors)
        return (*sizes, self.documents.longest, self.documents.uniform)

    @property
    def num_trained(self) -> int:
        """Targets that are not -100."""
        return int((self.targets != _IGNORED).sum())

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "Batch":
        """The same documents, with other tensors of the same shapes in the order of `tensors`."""
        *parts, starts = tensors
        docs = Documents(starts, self.documents.longest, self.documents.uniform)
        return Batch(*parts, docs)  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "Batch":
        """Copied without waiting for it."""
        return self.with_tensors(tuple(t.to(device, non_blocking=True) for t in self.tensors))

    def padded(self) -> "Batch":
        """With rounded sizes: few shapes to capture, to plan and to tune for.

        The padding is one more document without a target, and empty documents after it.
        """
        tokens = len(self.input_ids)
        extra = rounded_up(tokens) - tokens
        starts, docs = self.documents.starts, self.documents
        longest, uniform = docs.longest, docs.uniform
        if extra:
            starts = torch.cat([starts, starts[-1:] + extra])
            longest, uniform = max(longest, extra), 0
        if not uniform:
            longest = min(power_of_two(longest), tokens + extra)
            starts = _filled(starts, power_of_two(len(starts)), tokens + extra)
        trained = rounded_up(len(self.rows))
        return Batch(
            _filled(self.input_ids, tokens + extra, 0),
            torch.cat([self.position_ids, torch.arange(extra)]),
            # The last token predicts nothing, so nothing is lost where its gradient is written.
            _filled(self.rows, trained, tokens + extra - 1),
            _filled(self.targets, trained, _IGNORED),
            Documents(starts, longest, uniform),
        )


def make_batch(input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Batch:
    """From int64 (B, S) tensors, to the CPU; position ids start again at 0 with every document.

    Documents without a trained token (padding is one) change neither loss nor gradients and are left out. The first
    token of a document is never trained.
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


def packed_inputs(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """A causal LM's collated batch as `FastStep` takes it: input_ids, labels, position_ids, int64 (B, S) on the CPU.

    inputs: `input_ids` and `labels` (B, S), with `attention_mask` (B, S) for padded rows, or with `position_ids` that
    start again at 0 with each packed document, or neither. The documents are those that transformers sees: with a mask
    each row is one, however its positions run.
    Raises Unsupported for other inputs, rows with holes in their mask, trained tokens that padding or another document
    would predict, and batches without a trained token.
    """
    if unknown := [k for k in inputs if k not in _USED | _DERIVED and inputs[k] is not None]:
        raise Unsupported(f"the batch has {', '.join(unknown)}")
    ids, labels = inputs["input_ids"].cpu(), inputs["labels"].cpu()
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if positions is None:
        positions = torch.arange(ids.shape[1])
    positions = positions.cpu().expand(ids.shape)
    if mask is not None:
        positions = _positions_under(mask.cpu(), positions)
    elif not torch.equal(positions == 0, _begins(positions)):
        raise Unsupported("position ids do not start at 0")
    if (labels[:, 1:][positions[:, 1:] == 0] != _IGNORED).any():
        raise Unsupported("a trained token is the first one of its document")
    if not (labels[:, 1:] != _IGNORED).any():
        raise Unsupported("no token is trained")
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def _positions_under(mask: Tensor, positions: Tensor) -> Tensor:
    """Counted from the first token that the mask (B, S) shows; each token that it hides is a document of its own."""
    shown = mask == 1
    if mask.shape != positions.shape or not (shown | (mask == 0)).all():
        raise Unsupported("the attention mask is not one of 0 and 1 for each token")
    before = torch.cat([torch.zeros_like(shown[:, :1]), shown[:, :-1]], 1)
    if (shown & ~before).sum(1).max() > 1:
        raise Unsupported("the attention mask has holes")
    if (_begins(positions) & shown & before).any():
        raise Unsupported("position ids start again under an attention mask")
    return (shown.cumsum(1) - 1).masked_fill(~shown, 0)


def _begins(positions: Tensor) -> Tensor:
    """Bool (B, S): where transformers sees a new document (masking_utils.find_packed_sequence_indices)."""
    steps = positions.diff(dim=1) != 1
    return torch.cat([torch.ones_like(steps[:, :1]), steps], 1)


def _filled(values: Tensor, size: int, value: int) -> Tensor:
    return torch.cat([values, values.new_full((size - len(values),), value)])
