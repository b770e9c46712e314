"""Two models are compared where they answer: by the likeliest token, the distribution, the logits and the loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_space.data.prepared import Document, Manifest, write_prepared
from qlora_space.model.agreement import AnsweredRow, agreement, answered_rows

ROWS = [AnsweredRow((5, 6, 7, 8), (1, 2)), AnsweredRow((1, 2, 3), (1,))]


def logits(seed: int) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(len(row.positions), 12) for row in ROWS]


def test_a_model_agrees_with_itself() -> None:
    same = agreement(ROWS, logits(0), logits(0))
    assert (same.tokens, same.top1, same.kl, same.largest_logit_difference) == (3, 1.0, 0.0, 0.0)
    assert same.loss == same.adapter_loss


@given(st.integers(1, 1000))
def test_figures_are_those_of_the_definition(seed: int) -> None:
    p, q = torch.cat(logits(0)), torch.cat(logits(seed))
    found = agreement(ROWS, logits(0), logits(seed))
    kl = torch.nn.functional.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")
    loss = torch.nn.functional.cross_entropy(q, torch.tensor([7, 8, 3]))
    assert found.kl == pytest.approx(float(kl), abs=1e-6)
    assert found.loss == pytest.approx(float(loss), abs=1e-6)
    assert found.largest_logit_difference == pytest.approx(float((p - q).abs().max()))
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))


def test_one_logit_that_is_no_number_is_seen() -> None:
    broken = logits(0)
    broken[0][1, 3] = math.nan
    found = agreement(ROWS, logits(0), broken)
    assert not found.is_finite
    assert "no finite numbers" in found.in_words()


def test_rows_are_the_held_out_ones_where_they_answer(tmp_path) -> None:
    import numpy as np

    def document(ids: list[int], trained: int) -> Document:
        labels = [-100] * (len(ids) - trained) + ids[len(ids) - trained :]
        return Document(np.array(ids, np.int32), np.array(labels, np.int32))

    manifest = Manifest(
        key="k", dataset_sha="d", tokenizer_sha256="t", format="messages", columns={}, max_length=8, rows_read=3,
        rows_used=1, rows_dropped={}, rows_truncated=0, eval_rows=2, tokens=1, trained_tokens=1, packed_rows=1,
        waste_fraction=0, stop_token_ids=(2,),
    )  # fmt: skip
    held_out = [[document([5, 6, 7, 8], 2), document([1, 2, 3], 1)]]
    train = [[document([9, 9, 9], 1)]]
    folder = write_prepared(tmp_path / "with", manifest, train, held_out, []).folder
    assert answered_rows(folder) == ROWS
    assert answered_rows(folder, most_tokens=1) == ROWS, "a packed row is read whole"
    none = write_prepared(tmp_path / "without", manifest, train, [], []).folder
    assert answered_rows(none) == [AnsweredRow((9, 9, 9), (1,))], "none is held out"
    assert answered_rows(tmp_path / "nowhere") == []
