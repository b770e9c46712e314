"""The change of the loss and its interval, from what was measured."""

import numpy as np

from qlora_space.runs import RowLosses
from qlora_space.train.report import change_of


def rows_of(num_texts: int, num_pieces: int, **changed: object) -> RowLosses:
    """Pieces of one text change alike."""
    changes = np.repeat(np.random.default_rng(0).normal(-1, 2, num_texts), num_pieces)
    n = num_texts * num_pieces
    rows = RowLosses(
        tokens=(4,) * n,
        base=(10.0,) * n,
        trained=tuple((10 + changes).tolist()),
        pieces=(num_pieces,) * num_texts,
    )
    return rows.model_copy(update=changed)


def test_many_pieces_of_few_texts_give_no_interval() -> None:
    assert change_of(rows_of(10, 20)) is None
    assert change_of(rows_of(10, 20, pieces=())) is not None


def test_a_text_counts_once_however_many_pieces_it_has() -> None:
    whole, cut = change_of(rows_of(30, 1)), change_of(rows_of(30, 9))
    alone = change_of(rows_of(30, 9, pieces=()))
    assert whole
    assert cut
    assert alone
    assert cut.change == whole.change == alone.change
    assert np.isclose(cut.high - cut.low, whole.high - whole.low)
    assert alone.high - alone.low < 0.5 * (cut.high - cut.low)
