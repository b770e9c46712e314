"""Charts as SVG: pure functions from numbers to markup, coloured by style.css.

Lines are in a stretched SVG, labels around it in HTML, so that text keeps its size at any width and a redraw
every second moves nothing. x and y inside the SVG go from 0 to 1000.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter

from qlora_space.app.ui.render.escaped import exact, text
from qlora_space.core.wording import significant, small, visible

Point = tuple[float, float]
Steps = tuple[int, int]  # the first and the last one that are shown
_MAX_POINTS = 500
_height = itemgetter(1)
_SIDE = 1000.0
_PADDING = 0.04  # of the span of the data, above and below, at least
_STEPS_OF_SPAN = 32  # the ends of an axis move by so much of it, or half of that
_MIN_SPAN = 0.05  # of the highest value: of a line that is all but flat, tick labels still differ at three digits


@dataclass(frozen=True)
class Series:
    """One line of a chart; `css` names its colour and dash in style.css."""

    name: str
    points: Sequence[Point]
    css: str
    has_marks: bool = False
    has_best: bool = False  # mark the lowest point after step 0, which is the base itself


def thinned(points: Sequence[Point], limit: int = _MAX_POINTS) -> list[Point]:
    """At most `limit` points, first and last kept, extremes of each bucket kept.

    Buckets double in length when there are too many: until then, more points leave the earlier ones as they are, so
    that little of a chart that grows has to be sent again.
    """
    if len(points) <= limit:
        return list(points)
    needed = math.ceil(2 * (len(points) - 2) / (limit - 4))  # the last bucket may be a short one
    per_bucket = 1 << (needed - 1).bit_length()
    inner = points[1:-1]
    kept: list[Point] = [points[0]]
    for start in range(0, len(inner), per_bucket):
        bucket = inner[start : start + per_bucket]
        ends = {min(bucket, key=_height), max(bucket, key=_height)}
        kept.extend(sorted(ends))
    return [*kept, points[-1]]


def smoothed(points: Sequence[Point], weight: float = 0.85) -> list[Point]:
    """Exponential moving average, corrected for its start."""
    result: list[Point] = []
    mean = norm = 0.0
    for x, y in points:
        mean = weight * mean + (1 - weight) * y
        norm = weight * norm + (1 - weight)
        result.append((x, mean / norm))
    return result


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values that span low to high."""
    span = (high - low) or abs(high) or 1.0
    raw = span / wanted
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_max: float = 0,
    is_log: bool = False,
    unit: str = "",
    num_ticks: int = 4,
    steps: Steps | None = None,
) -> str:
    """A figure with title, legend, axes and lines. `x_max` fixes the right end before data is there; `steps` shows
    a part of the run only."""
    points = [within(s.points, steps) for s in series]
    drawn = [replace(s, points=_clean(p, is_log)) for s, p in zip(series, points, strict=True)]
    drawn = [s for s in drawn if s.points]
    if not drawn:
        nothing = "Nothing measured in these steps." if steps else "Nothing measured yet."
        return _figure(title, "", f'<p class="chart-empty">{nothing}</p>', "")
    scale = _Scale.around([p for s in drawn for p in s.points], x_max, is_log, num_ticks, steps)
    places = [scale.places(s.points) for s in drawn]
    lines = "".join(_line(s, at) for s, at in zip(drawn, places, strict=True))
    grid = "".join(f'<path class="grid" d="M0 {scale.y(v):.1f}H1000"/>' for v in scale.y_ticks)
    svg = (
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(described(title, drawn))}">{grid}{lines}</svg>'
    )
    best = "".join(_best(s, scale, is_log) for s in series if s.has_best)
    hover = exact(json.dumps(_hover(title, drawn, places, scale, unit), separators=(",", ":")))
    plot = f'<div class="plot" data-hover="{hover}">{svg}{scale.labels()}{best}</div>'
    return _figure(
        title, _legend(series, is_log, unit), plot, '<span class="x-name">optimizer step</span>'
    )


def described(title: str, series: Iterable[Series]) -> str:
    """The chart in words, for screen readers."""
    parts = []
    for line in series:
        first, last = line.points[0], line.points[-1]
        parts.append(
            f"{line.name}: {_value(first[1])} at step {first[0]:g}, "
            f"{_value(last[1])} at step {last[0]:g}"
        )
    return f"{title}. {'; '.join(parts)}."


def sparkline(points: Sequence[Point]) -> str:
    """A tiny line for the list of runs."""
    kept = thinned(_clean(points, False), 60)
    if len(kept) < 2:
        return '<svg class="spark" viewBox="0 0 100 30" aria-hidden="true"></svg>'
    scale = _Scale.around(kept, 0, False)
    path = " ".join(f"{scale.x(x) / 10:.1f},{2 + scale.y(y) * 0.026:.1f}" for x, y in kept)
    return (
        '<svg class="spark" viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">'
        f'<polyline points="{path}"/></svg>'
    )


@dataclass(frozen=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    y_ticks: tuple[float, ...]
    is_log: bool

    @classmethod
    def around(
        cls,
        points: Sequence[Point],
        x_max: float,
        is_log: bool,
        num_ticks: int = 0,
        steps: Steps | None = None,
    ) -> "_Scale":
        """`num_ticks` 0: no round values, the lowest and highest points touch the edges."""
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        low, high = min(ys), max(ys)
        if is_log:
            marks = _log_ticks(low, high)
            low, high = marks[0], marks[-1]
        elif not num_ticks:
            marks = []
            high = high if high > low else low + 1
        else:
            low, high = _padded(low, high)
            marks = _ticks_inside(low, high, num_ticks)
        x_low = min(0.0, *xs) if x_max else min(xs)
        x_low, x_high = steps or (x_low, max([*xs, x_max]))
        return cls(x_low, x_high, low, high, tuple(marks), is_log)

    def x(self, value: float) -> float:
        return _SIDE * (value - self.x_low) / ((self.x_high - self.x_low) or 1)

    def y(self, value: float) -> float:
        return self.places([(self.x_low, value)])[0][1]

    def places(self, points: Iterable[Point]) -> list[Point]:
        """Where they are drawn."""
        left, width = self.x_low, (self.x_high - self.x_low) or 1
        low, high = self._at(self.y_low), self._at(self.y_high)
        height = (high - low) or 1
        if self.is_log:
            points = [(x, math.log10(y)) for x, y in points]
        return [(_SIDE * (x - left) / width, _SIDE - _SIDE * (y - low) / height) for x, y in points]

    def _at(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def labels(self) -> str:
        y = "".join(
            f'<span class="y-tick" style="top:{self.y(v) / 10:.2f}%">{_mark(v)}</span>'
            for v in self.y_ticks
        )
        steps = [v for v in ticks(self.x_low, self.x_high) if self.x_low <= v <= self.x_high]
        x = "".join(
            f'<span class="x-tick" style="left:{self.x(v) / 10:.2f}%">{v:,g}</span>' for v in steps
        )
        return y + x


def _padded(low: float, high: float) -> tuple[float, float]:
    """Room around the data; values that are never negative get no axis below 0. In steps, so that a value that
    moves on does not move all others a little every time: all of them would have to be sent again."""
    span = max(high - low, _MIN_SPAN * abs(high)) or 1.0
    middle, half = (low + high) / 2, span * (0.5 + _PADDING)
    step = 2.0 ** math.floor(math.log2(span)) / _STEPS_OF_SPAN
    bottom, top = (
        math.floor((middle - half) / step) * step,
        math.ceil((middle + half) / step) * step,
    )
    return (max(bottom, 0.0) if low >= 0 else bottom), top


def _ticks_inside(low: float, high: float, wanted: int) -> list[float]:
    """Two round values or more between the ends of an axis."""
    while True:
        inside = [v for v in ticks(low, high, wanted) if low <= v <= high]
        if len(inside) >= 2:
            return inside
        wanted += 1


def within(points: Sequence[Point], steps: Steps | None) -> Sequence[Point]:
    """Those of a part of the run; of all of it without one."""
    return [p for p in points if steps[0] <= p[0] <= steps[1]] if steps else points


def _log_ticks(low: float, high: float) -> list[float]:
    marks = [
        m * 10.0**e
        for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for m in (1, 2, 5)
    ]
    below = max((m for m in marks if m <= low), default=low)
    above = min((m for m in marks if m >= high and m > below), default=high * 2)
    return [m for m in marks if below <= m <= above]


def _clean(points: Sequence[Point], is_log: bool) -> list[Point]:
    kept = thinned(points)  # all is well where the extremes are, which spares looking at each point
    if all(_is_drawn(y, is_log) for _, y in kept):
        return kept
    return thinned([p for p in points if _is_drawn(p[1], is_log)])


def _is_drawn(value: float, is_log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not is_log)


def _line(series: Series, at: Sequence[Point]) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    # A dot is a line of no length with round ends: circles would be stretched with the SVG.
    is_dotted = series.has_marks or len(at) == 1
    dots = "".join(f"M{x:.1f} {y:.1f}h.01" for x, y in at) if is_dotted else ""
    marks = f'<path class="marks {series.css}" d="{dots}"/>' if dots else ""
    return f'<path class="line {series.css}" d="{path}"/>{marks}'


def _best(series: Series, scale: _Scale, is_log: bool) -> str:
    """A ring around the lowest point of the whole run, with a label above it, where it is in sight."""
    trained = [point for point in _clean(series.points, is_log) if point[0] > 0]
    if not trained:
        return ""
    x, y = min(trained, key=lambda point: point[1])
    if not scale.x_low <= x <= scale.x_high:
        return ""
    left, top = scale.x(x) / 10, scale.y(y) / 10
    side = " to-left" if left > 70 else ""
    return (
        f'<span class="best {series.css}{side}" style="left:{left:.2f}%;top:{top:.2f}%">'
        f"<i></i><span>best, step {x:,g}</span></span>"
    )


def _legend(series: Sequence[Series], is_log: bool, unit: str) -> str:
    """Newest values of the whole run, whatever part of it is in sight."""
    newest = [
        (s, next((y for _, y in reversed(s.points) if _is_drawn(y, is_log)), None)) for s in series
    ]
    return "".join(
        f'<span class="key {s.css}"><i></i>{text(s.name)} <b>{_value(y)}{unit}</b></span>'
        for s, y in newest
        if y is not None
    )


def _hover(
    title: str,
    series: Sequence[Series],
    places: Sequence[Sequence[Point]],
    scale: _Scale,
    unit: str,
) -> dict[str, object]:
    """Lines with [step, left %, top %, value as text] of each point. A line that is alone is called as its chart is:
    "latest" is true of the legend only."""
    lines = [
        {
            "name": visible(s.name) if len(series) > 1 else title,
            "css": s.css,
            "at": [
                [x, round(left / 10, 2), round(top / 10, 2), _value(y)]
                for (x, y), (left, top) in zip(s.points, at, strict=True)
            ],
        }
        for s, at in zip(series, places, strict=True)
    ]
    return {"unit": unit, "steps": [scale.x_low, scale.x_high], "lines": lines}


def _figure(title: str, legend: str, plot: str, foot: str) -> str:
    head = f'<span class="chart-title">{text(title)}</span>{legend}'
    return f'<figure class="chart"><figcaption>{head}</figcaption>{plot}{foot}</figure>'


@lru_cache(2**14)  # a chart that grows has the same values every second
def _value(value: float) -> str:
    if 0 < abs(value) < 0.001:
        return small(value)
    text = significant(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def _mark(value: float) -> str:
    """A round value to its last digit: rounded to three, 1.125 would stand where it is not."""
    if 0 < abs(value) < 0.001:
        return small(value)
    return f"{value:,.9f}".rstrip("0").rstrip(".")
