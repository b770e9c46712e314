"""The picture of the losses: the same bytes for the same run, and none where there is nothing to show."""

import io
import math

from PIL import Image

from qlora_space.hub.card.loss_chart import loss_chart

TRAIN = [(step, 3.0 / step) for step in range(1, 2001)]
HELD_OUT = [(0, 3.1), (1000, 0.4), (2000, 0.2)]


def pixels(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_it_is_a_small_png_and_the_same_for_the_same_losses() -> None:
    chart = loss_chart(TRAIN, HELD_OUT)
    assert pixels(chart).size == (960, 420)
    assert len(chart) < 100_000
    assert loss_chart(TRAIN, HELD_OUT) == chart


def test_both_losses_are_drawn_from_the_upper_left_to_the_lower_right() -> None:
    chart = pixels(loss_chart(TRAIN, HELD_OUT))
    coloured = {
        (x, y)
        for x in range(78, 936)
        for y in range(28, 364)
        if max(chart.getpixel((x, y))) - min(chart.getpixel((x, y))) > 60  # type: ignore[arg-type]
    }
    assert min(y for x, y in coloured if x < 100) < 60
    assert min(y for x, y in coloured if x > 900) > 300
    assert pixels(loss_chart(TRAIN, [])).tobytes() != chart.tobytes()


def test_what_cannot_be_drawn_is_left_out() -> None:
    assert loss_chart([], []) == b""
    assert loss_chart([(1, 2.0)], HELD_OUT) == b""
    assert loss_chart([(1, math.nan), (2, 2.0)], []) == b""
    broken = [(step, math.inf if step == 7 else loss) for step, loss in TRAIN]
    assert pixels(loss_chart(broken, HELD_OUT)).size == (960, 420)
    assert pixels(loss_chart([(1, 2.0), (2, 2.0)], [])).size == (960, 420)
