"""Charts and maps: whole, in their frame, and true to their numbers."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.evaluation.ticks import nice_ticks, tick_labels
from sempa_mlx.report.map_svg import sentence_map
from sempa_mlx.report.measure import Joined
from sempa_mlx.report.svg import BOTTOM, HEIGHT, TOP, WIDTH, Line, LineChart, line_chart, thinned

HOSTILE = "<script>alert(\"1\")</script> & 'q' \u202e\u05d0 \U0001f600 \x00\ud800"
FINITE = st.floats(-1e6, 1e6)


def parsed(*lines, last_step=10, **marks):
    return ET.fromstring(line_chart(LineChart("Loss", lines, last_step, **marks)))


def lines_of(tree, kind):
    return [
        [tuple(map(float, spot.split(","))) for spot in each.get("points").split()]
        for each in tree.iter("polyline")
        if kind in each.get("class").split()
    ]


def texts_of(tree):
    return [each.text for each in tree.iter("text")]


def test_points_lie_where_their_values_say():
    tree = parsed(Line([(0, 1.0), (5, 3.0), (10, 2.0)]))
    ((start, middle, end),) = lines_of(tree, "first")
    assert (middle[0] - start[0]) == pytest.approx(end[0] - middle[0], abs=0.2)
    # From 1 to 3 the axis has the whole height.
    assert (start[1], middle[1]) == pytest.approx((HEIGHT - BOTTOM, TOP))
    assert end[1] == pytest.approx((HEIGHT - BOTTOM + TOP) / 2)
    assert [text for text in texts_of(tree) if text in ("1.0", "3.0")] == ["1.0", "3.0"]


def test_a_value_that_is_not_finite_breaks_the_line():
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, math.inf), (5, 1.5), (6, math.nan), (7, 1.0)]
    tree = parsed(Line([*points, (8, 2.0)]))
    assert [len(each) for each in lines_of(tree, "first")] == [2, 2]
    assert len(list(tree.iter("circle"))) == 1, "a value between two gaps is a dot"
    assert "nan" not in ET.tostring(tree, encoding="unicode")


@pytest.mark.parametrize("values", [[], [(1, math.nan)], [(1, math.inf), (2, -math.inf)]])
def test_a_chart_without_a_value_is_not_drawn(values):
    chart = LineChart("Loss", [Line(values)], 10)
    assert not chart.has_data
    with pytest.raises(ValueError, match="nothing to draw in Loss"):
        line_chart(chart)


def test_one_step_makes_a_chart():
    tree = parsed(Line([(1, 0.5)]), last_step=1)
    (dot,) = tree.iter("circle")
    assert 0 < float(dot.get("cx")) < WIDTH


def test_best_step_level_and_peak_are_marked():
    line = Line([(0, 70.0), (4, 80.25), (10, 75.0)])
    tree = parsed(line, best_step=4, level=(70.0, "base 70.00"), peak=((4, 80.25), "80.25"))
    assert {"best step 4", "base 70.00", "80.25"} <= {*texts_of(tree)}
    (peak,) = (each for each in tree.iter("circle") if each.get("class") == "peak")
    spot = lines_of(tree, "first")[0][1]
    assert (float(peak.get("cx")), float(peak.get("cy"))) == pytest.approx(spot, abs=0.06)
    (best,) = (each for each in tree.iter("line") if each.get("class") == "best")
    assert float(best.get("x1")) == pytest.approx(spot[0], abs=0.06)


def test_lines_are_named_at_their_ends_without_touching():
    ends = [Line([(0, 0.0), (10, 5.0)], "chosen"), Line([(0, 0.0), (10, 5.01)], "rejected")]
    tree = parsed(*ends)
    heights = [
        float(each.get("y")) for each in tree.iter("text") if each.text in ("chosen", "rejected")
    ]
    assert abs(heights[0] - heights[1]) >= 12


def test_lines_that_end_in_one_point_are_both_named():
    """After one step chosen and rejected are level, to the bit."""
    tree = parsed(Line([(1, 0.0)], "chosen"), Line([(1, 0.0)], "rejected", "second"))
    assert {"chosen", "rejected"} <= set(texts_of(tree))


def test_a_reader_who_sees_nothing_is_told_the_numbers():
    tree = parsed(Line([(1, 0.69), (9, 0.125)]), best_step=4)
    assert tree.get("role") == "img"
    assert tree.get("aria-label") == "Loss: 0.69 at step 1, 0.125 at step 9; best step 4"


def test_hostile_names_stay_text():
    lines = [Line([(0, 1.0), (1, 2.0)], HOSTILE), Line([(0, 1.0), (1, 3.0)], "b")]
    drawn = line_chart(LineChart(HOSTILE, lines, 1))
    assert "<script" not in drawn
    assert '"1"' not in drawn
    drawn.encode("utf-8")
    found = next(each.text for each in ET.fromstring(drawn).iter("text") if "alert" in each.text)
    assert found == HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(FINITE | st.just(math.nan), min_size=1, max_size=12), st.integers(0, 12))
def test_every_mark_lies_on_the_paper(values, best_step):
    line = Line([*enumerate(values)], "a", "first", [*enumerate(values)])
    chart = LineChart("Loss", [line, line], len(values) - 1, best_step)
    if not chart.has_data:
        return
    tree = ET.fromstring(line_chart(chart))
    for kind in ("first", "faint"):
        for x, y in (spot for each in lines_of(tree, kind) for spot in each):
            assert 0 <= x <= WIDTH
            assert TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1
    for each in tree.iter("text"):
        assert 0 <= float(each.get("x")) <= WIDTH
        assert 0 < float(each.get("y")) < HEIGHT


def test_long_runs_are_thinned_to_their_ends():
    points = [(step, float(step)) for step in range(100_000)]
    kept = thinned(points)
    assert (len(kept), kept[0], kept[-1]) == (600, points[0], points[-1])
    gaps = np.diff([step for step, _ in kept])
    assert gaps.max() - gaps.min() <= 1
    assert thinned(points[:600]) == points[:600]


# Ticks


@settings(max_examples=200, deadline=None, derandomize=True)
@given(FINITE, st.floats(0, 1e6), st.integers(2, 9))
def test_tick_labels_tell_ticks_apart(low, size, count):
    ticks = nice_ticks([low, low + size], count)
    labels = tick_labels(ticks)
    assert len({*labels}) == len(ticks)
    gap = ticks[1] - ticks[0]
    for tick, label in zip(ticks, labels, strict=True):
        value = float(label.replace("\N{MINUS SIGN}", "-").replace(",", ""))
        assert value == pytest.approx(tick, abs=0.01 * gap)


def test_tick_labels_have_one_number_of_decimals():
    assert tick_labels([0.6, 0.65, 0.7]) == ["0.60", "0.65", "0.70"]
    assert tick_labels([-2.0, 0.0, 2.0]) == ["\N{MINUS SIGN}2", "0", "2"]
    assert tick_labels([0, 500, 1000]) == ["0", "500", "1,000"]
    assert tick_labels([-0.0, 1.0]) == ["0", "1"]


# Maps


def drawn_map(points, sentences, joined=(), box=None):
    points = np.array(points, dtype=np.float64).reshape(-1, 2)
    box = box or (points.min(axis=0), points.max(axis=0))
    return ET.fromstring(sentence_map(points, sentences, joined, box=box, label="Map of few"))


def test_a_map_keeps_distances_and_tells_sentences():
    tree = drawn_map([[0, 0], [3, 0], [0, 4]], ["a", HOSTILE, "c"])
    spots = {
        each.find("title").text: (float(each.get("cx")), float(each.get("cy")))
        for each in tree.iter("circle")
    }
    a, c = spots["a"], spots["c"]
    (b,) = (spot for name, spot in spots.items() if "alert" in name)
    assert math.dist(a, b) / math.dist(a, c) == pytest.approx(3 / 4, abs=1e-2)
    assert c[1] < a[1], "up is up"
    assert tree.get("aria-label") == "Map of few"


def test_pairs_are_joined_and_numbered():
    points = [[0, 0], [1, 0], [0, 5], [1, 5], [3, 3]]
    tree = drawn_map(points, list("abcde"), [Joined(0, 1, 5.0), Joined(2, 3, 4.5)])
    assert texts_of(tree) == ["1", "2"]
    circles = [*tree.iter("circle")]
    spots = {each.find("title").text: (each.get("cx"), each.get("cy")) for each in circles}
    ends = [
        ((each.get("x1"), each.get("y1")), (each.get("x2"), each.get("y2")))
        for each in tree.iter("line")
    ]
    assert ends == [(spots["a"], spots["b"]), (spots["c"], spots["d"])]


def test_numbers_on_a_map_never_overlap():
    random = np.random.default_rng(0)
    points = random.normal(size=(60, 2)) * [1, 0.2]
    joined = [Joined(2 * pair, 2 * pair + 1, 5.0) for pair in range(30)]
    tree = drawn_map(points, [str(row) for row in range(60)], joined)
    spots = [(float(each.get("x")), float(each.get("y"))) for each in tree.iter("text")]
    assert len(spots) > 5
    for index, (x, y) in enumerate(spots):
        assert all(abs(x - a) >= 16 or abs(y - b) >= 12 for a, b in spots[:index])


def test_points_in_one_place_make_a_map():
    tree = drawn_map([[0, 0], [0, 0]], ["a", "b"], [Joined(0, 1, 5.0)])
    for each in tree.iter("circle"):
        assert math.isfinite(float(each.get("cx")))
