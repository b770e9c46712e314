"""The loss of a run as a picture for its card: training loss with a smoothed line, and held-out loss."""

import io
import math
from collections.abc import Callable, Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

LossPoint = tuple[int, float]
CHART_FILE = "loss.png"
_SIZE, _FRAME = (960, 420), (76, 28, 936, 364)  # pixels: left, top, right, bottom
_TWICE = 2  # drawn so large and shrunk, which smooths the lines
_MOST_POINTS = 600
_PALE, _LINE, _HELD_OUT = "#c9d6f2", "#2f5fd0", "#d2691e"
_INK, _GRID = "#444444", "#e4e4e4"


def loss_chart(train: Sequence[LossPoint], held_out: Sequence[LossPoint]) -> bytes:
    """A PNG of 960 x 420 pixels; b'' for fewer than two finite points. Losses by step, in nats per token."""
    train, held_out = _finite(train), _finite(held_out)
    if len(train) < 2:
        return b""
    image = Image.new("RGB", (_SIZE[0] * _TWICE, _SIZE[1] * _TWICE), "white")
    draw, place = ImageDraw.Draw(image), _placing([*train, *held_out])
    _axes(draw, [*train, *held_out], place)
    draw.line([place(point) for point in train], _PALE, 3)
    draw.line([place(point) for point in _smoothed(train)], _LINE, 5)
    dots = [place(point) for point in held_out]
    if len(dots) > 1:
        draw.line(dots, _HELD_OUT, 4)
    for x, y in dots:
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), _HELD_OUT)
    _legend(draw, has_held_out=bool(dots))
    buffer = io.BytesIO()
    image.resize(_SIZE, Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _finite(points: Iterable[LossPoint]) -> list[LossPoint]:
    kept = [(step, loss) for step, loss in points if math.isfinite(loss)]
    stride = max(1, math.ceil(len(kept) / _MOST_POINTS))
    return kept if stride == 1 else [*kept[::stride], kept[-1]]


def _smoothed(points: Sequence[LossPoint]) -> list[LossPoint]:
    """The mean of each point and its neighbours, a thirtieth of all to either side."""
    reach = max(1, len(points) // 30)
    windows = (points[max(0, i - reach) : i + reach + 1] for i in range(len(points)))
    means = (math.fsum(loss for _, loss in window) / len(window) for window in windows)
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


def _placing(points: Sequence[LossPoint]) -> Callable[[LossPoint], tuple[float, float]]:
    """Step and loss to pixels of the large picture."""
    left, top, right, bottom = (edge * _TWICE for edge in _FRAME)
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    first, last, low, high = min(steps), max(steps), min(losses), max(losses)
    per_step, per_nat = 1 / max(1, last - first), 1 / max(1e-9, high - low)

    def place(point: LossPoint) -> tuple[float, float]:
        across, up = (point[0] - first) * per_step, (point[1] - low) * per_nat
        return left + across * (right - left), bottom - up * (bottom - top)

    return place


def _axes(
    draw: ImageDraw.ImageDraw,
    points: Sequence[LossPoint],
    place: Callable[[LossPoint], tuple[float, float]],
) -> None:
    font, small = ImageFont.load_default(26), ImageFont.load_default(24)
    left, top, right, bottom = (edge * _TWICE for edge in _FRAME)
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    for loss in _ticks(min(losses), max(losses)):
        _, y = place((min(steps), loss))
        draw.line((left, y, right, y), _GRID, 2)
        draw.text((left - 14, y), f"{loss:.3g}", _INK, small, "rm")
    for step in _ticks(min(steps), max(steps)):
        x, _ = place((round(step), min(losses)))
        draw.text((x, bottom + 12), f"{step:,.0f}", _INK, small, "ma")
    draw.line((left, top, left, bottom, right, bottom), _INK, 2)
    draw.text((right, bottom + 48), "step", _INK, font, "ra")
    draw.text((left, top - 8), "loss (nats per token)", _INK, font, "ls")


def _ticks(low: float, high: float) -> list[float]:
    """Round values between both, about five."""
    if high <= low:
        return [low]
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    stride = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
    return [stride * i for i in range(math.ceil(low / stride), math.floor(high / stride) + 1)]


def _legend(draw: ImageDraw.ImageDraw, *, has_held_out: bool) -> None:
    entries = [("training, smoothed", _LINE), ("held out", _HELD_OUT)][: 1 + has_held_out]
    font, x, y = ImageFont.load_default(26), 1240.0, 20.0
    for words, colour in entries:
        draw.line((x, y + 16, x + 46, y + 16), colour, 6)
        draw.text((x + 58, y), words, _INK, font)
        x += 110 + font.getlength(words)
