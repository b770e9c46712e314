import html
import itertools
import json
import math
import re
import statistics
import xml.etree.ElementTree as ElementTree
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from qlora_space.app.ui.render.charts import Series, line_chart, smoothed, sparkline, thinned, ticks
from qlora_space.app.ui.render.patch import changes


def hover_of(markup: str) -> Any:
    found = re.search(r'data-hover="([^"]*)"', markup)
    assert found
    return json.loads(html.unescape(found[1]))


def test_a_chart_never_draws_more_than_500_points_and_keeps_the_extremes() -> None:
    points = [(float(i), math.sin(i)) for i in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    kept = thinned(points)
    assert len(kept) <= 502
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert (54_321.0, 99.0) in kept
    assert kept == sorted(kept)


def test_ticks_are_round_and_span_the_values() -> None:
    assert ticks(0, 3.2) == [0, 1, 2, 3, 4]
    assert ticks(0, 120) == [0, 50, 100, 150]
    low, *_, high = ticks(2.21, 3.19)
    assert low <= 2.21
    assert high >= 3.19
    assert len(ticks(5, 5)) >= 2


@given(st.floats(0.01, 1e6), st.floats(0, 3))
def test_no_two_marks_of_an_axis_read_alike(low: float, share: float) -> None:
    points = [(1, low), (2, low * (1 + share))]
    markup = line_chart("Memory", [Series("now", points, "quiet")], num_ticks=2)
    marks = re.findall(r'class="y-tick"[^>]*>([^<]*)<', markup)
    assert len(set(marks)) == len(marks) >= 2, marks


def test_smoothing_starts_at_the_first_value() -> None:
    assert smoothed([(0, 4.0), (1, 4.0)]) == [(0, 4.0), (1, 4.0)]


def test_a_chart_is_well_formed_and_says_in_words_what_it_shows() -> None:
    loss = Series("training", [(1, 3.0), (2, 2.0), (40, 0.5)], "train")
    markup = line_chart("Loss", [loss], x_max=40)
    ElementTree.fromstring(markup)
    assert "Loss. training: 3 at step 1, 0.5 at step 40." in markup


def test_a_chart_survives_no_points_one_point_and_infinities() -> None:
    assert "Nothing measured yet" in line_chart("Loss", [Series("a", [], "train")])
    for is_log in (False, True):
        points = [(1, float("nan")), (2, float("inf")), (3, 0.0), (4, 2.0)]
        markup = line_chart("Loss", [Series("a", points, "train")], is_log=is_log)
        assert not re.search(r"nan|inf", markup)


def test_a_hostile_name_is_text() -> None:
    markup = line_chart("<b>", [Series("<script>", [(1, 1.0)], "train")])
    assert "<script>" not in markup
    assert "<b>&" not in markup


def test_a_sparkline_needs_two_points() -> None:
    assert "polyline" not in sparkline([(1, 1.0)])
    assert "polyline" in sparkline([(1, 1.0), (2, 0.5)])


def test_the_best_evaluation_is_marked_in_words() -> None:
    heldout = Series("held-out", [(0, 0.4), (20, 0.5), (40, 0.8)], "heldout", has_best=True)
    assert "best, step 20" in line_chart("Loss", [heldout])
    one = Series("held-out", [(0, 3.0)], "heldout", has_best=True)
    assert "best" not in line_chart("Loss", [one])


def test_an_axis_hugs_its_data_so_that_a_flat_line_keeps_its_shape() -> None:
    points = [(1.0, 6.2), (2.0, 6.4), (3.0, 6.3)]
    markup = line_chart("Memory", [Series("latest", points, "quiet")])
    path = re.search(r'class="line quiet" d="M([^"]*)"', markup)
    assert path
    heights = [float(point.split()[1]) for point in path[1].split("L")]
    assert max(heights) - min(heights) > 500, "over half of the plot"
    assert all(0 < height < 1000 for height in heights), "none on the edge"


def test_the_hover_names_the_line_the_step_and_the_value() -> None:
    markup = line_chart("Memory, GiB", [Series("latest", [(1, 1.5), (24, 1.75)], "quiet")])
    line = hover_of(markup)["lines"][0]
    assert line["name"] == "Memory, GiB"
    assert [line["at"][1][0], line["at"][1][3]] == [24, "1.75"]


def test_a_part_of_the_run_is_drawn_alone_and_on_its_own_scale() -> None:
    points = [(float(i), 100.0 if i < 5 else 1.0 + i / 100) for i in range(1, 41)]
    markup = line_chart("Loss", [Series("training", points, "train")], x_max=40, steps=(10, 20))
    found = hover_of(markup)
    assert found["steps"] == [10, 20]
    assert [p[0] for p in found["lines"][0]["at"]] == list(range(10, 21))
    marks = re.findall(r'class="y-tick"[^>]*>([^<]*)<', markup)
    assert all(1.0 <= float(mark) <= 1.3 for mark in marks)
    assert "Nothing measured in these steps" in line_chart(
        "Loss", [Series("training", points, "train")], steps=(90, 99)
    )


def test_in_a_part_of_the_run_best_and_newest_are_still_those_of_the_whole_run() -> None:
    points = [(step, 10.0 if step < 50 else 1.0 + step / 1000) for step in range(1, 101)]
    heldout = Series("held-out", points, "heldout", has_best=True)
    part = line_chart("Loss", [heldout], x_max=100, steps=(60, 80))
    assert "best" not in part, "step 50 is not in sight"
    assert "held-out <b>1.1</b>" in part, "of step 100"
    assert "best, step 50" in line_chart("Loss", [heldout], x_max=100, steps=(40, 80))


@example(1.0, 0.09)
@given(st.floats(0.01, 1e5), st.floats(0.06, 3))
def test_a_mark_of_an_axis_stands_at_the_value_that_it_says(low: float, share: float) -> None:
    points = [(1, low), (2, low * (1 + share))]
    markup = line_chart("Memory", [Series("memory", points, "quiet")])
    path = re.search(r'class="line quiet" d="M[\d.]+ ([\d.]+)L[\d.]+ ([\d.]+)"', markup)
    assert path
    bottom, top = float(path[1]) / 10, float(path[2]) / 10
    marks = re.findall(r'class="y-tick" style="top:([\d.]+)%">([^<]*)<', markup)
    for at, text in marks:
        value = (bottom - float(at)) / (bottom - top) * low * share + low
        assert abs(value - float(text.replace(",", ""))) < 0.002 * low * share, (text, value)


@given(
    st.dictionaries(st.integers(0, 1299), st.sampled_from([math.nan, math.inf, -math.inf, -1.0])),
    st.booleans(),
)
def test_what_cannot_be_drawn_hides_no_extreme(wrong: dict[int, float], is_log: bool) -> None:
    points = [(float(i), wrong.get(i, 2 + math.sin(0.37 * i))) for i in range(1300)]
    markup = line_chart("Loss", [Series("training", points, "train")], is_log=is_log)
    drawn = {at[0] for at in hover_of(markup)["lines"][0]["at"]}
    good = [p for p in points if math.isfinite(p[1]) and (p[1] > 0 or not is_log)]
    ends = {min(good, key=lambda p: p[1])[0], max(good, key=lambda p: p[1])[0], good[-1][0]}
    assert ends <= drawn
    assert all(step not in wrong or (not is_log and wrong[int(step)] == -1) for step in drawn)


def test_a_value_that_moves_on_leaves_most_of_a_chart_where_it_is() -> None:
    """A learning rate that falls is at a new lowest point with each step."""
    charts = [
        line_chart(
            "Rate",
            [Series("latest", [(i, 2 - i / 10_000) for i in range(steps)], "quiet")],
            x_max=10_000,
        )
        for steps in range(9000, 9200, 5)
    ]
    sent = [len(str(changes(old, new))) for old, new in itertools.pairwise(charts)]
    assert statistics.mean(sent) < len(charts[0]) / 10
