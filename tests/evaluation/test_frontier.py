import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.data.records import StsPair, StsTask
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.evaluation.frontier import FrontierPoint, frontier_points, on_frontier
from sempa_mlx.evaluation.frontier_svg import HEIGHT, WIDTH, frontier_svg
from sempa_mlx.evaluation.generation import Drift, Perplexity, text_drift
from sempa_mlx.evaluation.means import Mean
from sempa_mlx.evaluation.sts import evaluate_sts
from sempa_mlx.evaluation.ticks import nice_ticks
from tests.tiny import put_adapter, tiny_loaded

SVG = "{http://www.w3.org/2000/svg}"
TASK = StsTask(
    "few",
    "dev",
    tuple(
        StsPair(number, f"A man has {number} books.", f"A woman reads {number * 3 % 7} pages.")
        for number in range(6)
    ),
)


def point(scale, spearman, kl, perplexity=30.0):
    text = Perplexity(perplexity, 0.5, 100, 99)
    return FrontierPoint(spearman, Drift(scale, text, Mean(kl, 0.01, 99)))


POINTS = [point(0, 0.7, 0.0), point(0.5, 0.8, 0.04), point(1, 0.79, 0.16), point(1.25, 0.81, 0.25)]


def test_each_scale_is_embedded_as_it_is_alone():
    loaded = tiny_loaded()
    put_adapter(loaded.model)
    encoder = Encoder(loaded)
    drifts = text_drift(loaded.model, list(range(1, 60)), [0.0, 0.5, 1.0], window=16)
    done = []
    found = frontier_points(encoder, [TASK], drifts, done.append)
    assert [each.scale for each in found] == [0.0, 0.5, 1.0]
    assert [each.drift for each in found] == drifts
    for each in found:
        (alone,) = evaluate_sts(encoder.with_scale(each.scale), [TASK])
        assert each.spearman == alone.spearman
    assert len({each.spearman for each in found}) > 1
    assert sum(done) == 3 * 12


def test_what_another_beats_is_not_on_the_frontier():
    assert on_frontier(POINTS) == [True, True, False, True]
    assert on_frontier([*POINTS, point(0.1, math.nan, 0.0)]) == [True, True, False, True, False]
    twins = [point(0, 0.5, 0.1), point(1, 0.5, 0.1)]
    assert on_frontier(twins) == [True, True], "neither is better"
    assert on_frontier([]) == []


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 5)), min_size=1, max_size=8))
def test_every_point_is_on_the_frontier_or_beaten_by_one_that_is(parts):
    points = [point(index, spearman, kl) for index, (spearman, kl) in enumerate(parts)]
    best = on_frontier(points)
    assert any(best)
    for each, is_best in zip(points, best, strict=True):
        own = (each.spearman, each.drift.kl.value)
        rivals = [
            (rival.spearman, rival.drift.kl.value)
            for rival, wins in zip(points, best, strict=True)
            if wins and rival.spearman >= own[0] and rival.drift.kl.value <= own[1]
        ]
        assert rivals, each
        assert not is_best or {*rivals} == {own}


# The plot


def parsed(points, title="run on few"):
    return ET.fromstring(frontier_svg(points, title))


def circles(tree):
    return [
        (float(each.get("cx")), float(each.get("cy")), each.get("class"))
        for each in tree.iter(f"{SVG}circle")
    ]


def test_the_plot_is_whole_and_needs_nothing_else():
    text = frontier_svg(POINTS, 'a <b> & "c"')
    tree = ET.fromstring(text)
    assert tree.find(f"{SVG}title").text == 'a <b> & "c"'
    assert "prefers-color-scheme: dark" in text
    assert not re.findall(r"(href|url\(|@import|<script)", text)
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]


def test_dots_stand_where_their_figures_say():
    found = circles(parsed(POINTS))
    assert [kind for _, _, kind in found] == ["dot", "dot", "dot beaten", "dot"]
    across = [x for x, _, _ in found]
    # KL 0, 0.04, 0.16, 0.25 has roots 0, 0.2, 0.4, 0.5.
    steps = [(x - across[0]) / (across[-1] - across[0]) for x in across]
    assert steps == pytest.approx([0, 0.4, 0.8, 1.0], abs=1e-3)
    heights = [y for _, y, _ in found]
    assert heights[0] > heights[2] > heights[1] > heights[3], "more Spearman stands higher"
    rise = (heights[0] - heights[1]) / (heights[0] - heights[3])
    assert rise == pytest.approx(10 / 11, abs=1e-2)
    for x, y, _ in found:
        assert 0 < x < WIDTH
        assert 0 < y < HEIGHT


def test_every_dot_tells_its_figures():
    tree = parsed(POINTS)
    told = [group.find(f"{SVG}title").text for group in tree.iter(f"{SVG}g")]
    assert told[1] == "scale 0.5: Spearman 80.00, perplexity 30.00, KL 0.0400"


def test_points_without_a_spearman_are_left_out():
    assert len(circles(parsed([*POINTS, point(2, math.nan, 0.5)]))) == 4
    assert circles(parsed([point(0, math.nan, 0.0)])) == []


def test_an_adapter_that_changes_nothing_can_be_drawn():
    found = circles(parsed([point(0, 0.7, 0.0), point(1, 0.7, 0.0)]))
    assert len({(x, y) for x, y, _ in found}) == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=5))
def test_ticks_are_round_even_and_enclose_the_values(values):
    ticks = nice_ticks(values)
    gaps = [after - before for before, after in pairwise(ticks)]
    assert 2 <= len(ticks) <= 9
    assert gaps == pytest.approx([gaps[0]] * len(gaps))
    slack = 1e-6 * max(1.0, gaps[0])
    assert ticks[0] <= min(values) + slack
    assert ticks[-1] >= max(values) - slack
    mantissa = gaps[0] / 10 ** math.floor(math.log10(gaps[0]) + 1e-9)
    assert any(mantissa == pytest.approx(nice) for nice in (1, 2, 5, 10))


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_point_without_a_kl_is_left_out(kl):
    assert len(circles(parsed([*POINTS, point(2, 0.9, kl)]))) == len(POINTS)
