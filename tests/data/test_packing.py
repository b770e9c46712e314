import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_space.data import pack, waste_fraction
from qlora_space.data.packing import _subset_sums

LENGTHS = st.lists(st.integers(1, 64), max_size=200)


@given(LENGTHS)
def test_every_document_is_in_exactly_one_row_and_no_row_is_too_long(lengths: list[int]) -> None:
    rows = pack(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= 64 for row in rows)


@given(LENGTHS)
def test_no_two_rows_could_be_one(lengths: list[int]) -> None:
    sums = sorted(sum(lengths[index] for index in row) for row in pack(lengths, 64))
    assert len(sums) < 2 or sums[0] + sums[1] > 64


@given(LENGTHS)
def test_the_same_lengths_give_the_same_rows(lengths: list[int]) -> None:
    assert pack(lengths, 64) == pack(list(lengths), 64)


def test_chat_like_lengths_waste_at_most_two_percent() -> None:
    rng = random.Random(0)
    lengths = [min(2048, int(rng.lognormvariate(5.4, 0.9)) + 1) for _ in range(5000)]
    assert waste_fraction(lengths, pack(lengths, 2048), 2048) <= 0.02


@pytest.mark.parametrize("length", [0, 17])
def test_a_length_that_fits_no_row_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 16"):
        pack([length], 16)


def test_lengths_without_short_ones_waste_at_most_two_percent() -> None:
    rng = random.Random(0)
    lengths = [min(512, 80 + int(rng.gammavariate(2, 60))) for _ in range(5000)]
    assert waste_fraction(lengths, pack(lengths, 512), 512) <= 0.02


@given(st.lists(st.integers(20, 64), max_size=60))
def test_the_search_puts_every_document_into_one_row(lengths: list[int]) -> None:
    rows = _subset_sums(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sums = sorted(sum(lengths[index] for index in row) for row in rows)
    assert all(0 < each <= 64 for each in sums)
    assert len(sums) < 2 or sums[0] + sums[1] > 64
