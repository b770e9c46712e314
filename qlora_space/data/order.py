"""Which rows a training step takes: a function of seed and step alone, so that resuming is exact.

Epochs follow each other without a gap: row `i` of the whole training is row `i % num_rows` of epoch
`i // num_rows`, and a step takes the next `rows_per_step` of them.
"""

import numpy as np


def row_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """Each of the rows once, in the order of this epoch (from 0): int64 (num_rows,).

    The same on every machine and numpy version: numpy guarantees the raw stream of its bit generators,
    but not what its shuffles make of it. Philox is keyed, so no epoch depends on those before it.
    """
    raw = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_rows)
    return np.argsort(raw, kind="stable")


def rows_of_step(step: int, rows_per_step: int, num_rows: int, seed: int) -> np.ndarray:
    """The rows of optimizer step `step` (from 0), over all micro-batches and devices: int64 (rows_per_step,).

    A step at the end of an epoch goes on with rows of the next. Computes the order of one epoch (of two
    where they meet), however late the step. Raises ValueError if there are no rows.
    """
    if num_rows < 1:
        raise ValueError("there are no rows to order")
    row, end = step * rows_per_step, (step + 1) * rows_per_step
    pieces = [np.empty(0, np.int64)]
    while row < end:
        epoch, first = divmod(row, num_rows)
        pieces.append(row_order(num_rows, seed, epoch)[first : first + end - row])
        row += len(pieces[-1])
    return np.concatenate(pieces)
