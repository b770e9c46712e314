"""Mixed bits: within the mean that was asked for, and better than any other simple choice of the same size."""

import random
from itertools import product

import pytest

from qlora_space.lowbit.allocate import Cost, allocate


def costs(seed: int, count: int = 6, weights: tuple[int, ...] = (1,)) -> dict[str, Cost]:
    drawn = random.Random(seed)
    found = {}
    for i in range(count):
        first = drawn.uniform(0.02, 0.2)
        errors = {2: first, 3: first * drawn.uniform(0.2, 0.35), 4: first * 0.07}
        found[f"layer {i}"] = Cost(drawn.choice(weights), errors)
    return found


def mean(found: dict[str, int], asked: dict[str, Cost]) -> float:
    total = sum(cost.weights for cost in asked.values())
    return sum(bits * asked[name].weights for name, bits in found.items()) / total


def error(found: dict[str, int], asked: dict[str, Cost]) -> float:
    return sum(asked[name].errors[bits] for name, bits in found.items())


@pytest.mark.parametrize("mean_bits", [2.0, 2.25, 2.5, 3.1, 3.9])
def test_the_mean_is_not_above_what_was_asked_and_less_than_one_layer_below(
    mean_bits: float,
) -> None:
    for seed in range(20):
        asked = costs(seed, count=12, weights=(1, 2, 5))
        found = allocate(asked, mean_bits)
        assert set(found.values()) <= {2, 3, 4}
        assert mean(found, asked) <= mean_bits + 1e-6
        largest = 5 / sum(cost.weights for cost in asked.values())
        assert mean(found, asked) > mean_bits - largest - 1e-6


def test_layers_of_one_size_get_the_best_allocation_there_is() -> None:
    for seed in range(20):
        asked = costs(seed)
        best = min(
            error(dict(zip(asked, widths, strict=True)), asked)
            for widths in product((2, 3, 4), repeat=len(asked))
            if sum(widths) <= 2.5 * len(asked)
        )
        assert error(allocate(asked, 2.5), asked) == pytest.approx(best)


def test_of_layers_that_suffer_alike_the_smaller_ones_get_the_bits() -> None:
    errors = {2: 0.1, 3: 0.03, 4: 0.007}
    asked = {"a large one": Cost(100, errors), "small": Cost(60, errors), "too": Cost(60, errors)}
    assert allocate(asked, 2 + 120 / 220) == {"a large one": 2, "small": 3, "too": 3}
