"""A map of sentences as inline SVG: quiet dots, and numbered pairs joined by lines."""

from collections.abc import Sequence

import numpy as np

from sempa_mlx.report.markup import Markup, element
from sempa_mlx.report.measure import Joined

WIDTH, MARGIN = 400, 16
HEIGHTS = (240.0, 480.0)
OFFSETS = ((0, -9), (0, 18), (12, 4), (-12, 4), (10, -7), (-10, -7), (10, 15), (-10, 15))
LABEL = (17.0, 13.0)  # room of a number, in pixels

Spot = tuple[float, float]


def sentence_map(
    points: np.ndarray,
    sentences: Sequence[str],
    joined: Sequence[Joined],
    *,
    box: tuple[np.ndarray, np.ndarray],
    label: str,
) -> Markup:
    """Draw sentences at their places; pointing at a dot shows its sentence.

    Args:
        points: (n, 2) finite.
        sentences: n texts.
        joined: pairs to draw in colour, numbered from 1; a number without room is left out.
        box: the lowest and the highest x and y to show, (2,) each, so that maps can have one scale.
        label: what the map shows, for those who do not see it.
    """
    (left, low), (right, high) = box
    unit = (WIDTH - 2 * MARGIN) / max(right - left, (high - low) * WIDTH / HEIGHTS[1], 1e-9)
    height = max(HEIGHTS[0], 2 * MARGIN + unit * (high - low))
    middle = np.array([left + right, low + high]) / 2
    spots = [
        (WIDTH / 2 + unit * float(x), height / 2 - unit * float(y)) for x, y in points - middle
    ]
    named = {row for pair in joined for row in (pair.left, pair.right)}
    quiet = [
        _dot(spots[row], sentences[row], "quiet") for row in range(len(spots)) if row not in named
    ]
    lines = [_join(spots[pair.left], spots[pair.right]) for pair in joined]
    dots = [_dot(spots[row], sentences[row], "named") for row in sorted(named)]
    return element(
        "svg",
        {"viewBox": f"0 0 {WIDTH} {height:.0f}", "role": "img", "aria-label": label},
        element("rect", {"class": "frame", "width": WIDTH, "height": float(height), "rx": 6}),
        *(*quiet, *lines, *dots),
        *_numbers([(spots[pair.left], spots[pair.right]) for pair in joined], float(height)),
    )


def _dot(spot: Spot, sentence: str, kind: str) -> Markup:
    attributes = {"class": kind, "cx": spot[0], "cy": spot[1], "r": 4 if kind == "named" else 2.5}
    return element("circle", attributes, element("title", {}, sentence))


def _join(one: Spot, other: Spot) -> Markup:
    ends = {"x1": one[0], "y1": one[1], "x2": other[0], "y2": other[1]}
    return element("line", {"class": "join", **ends})


def _numbers(pairs: Sequence[tuple[Spot, Spot]], height: float) -> list[Markup]:
    """Put each pair's number where it meets neither another number nor a coloured dot."""
    dots = [spot for pair in pairs for spot in pair]
    taken: list[Spot] = []
    found = []
    for number, (one, other) in enumerate(pairs, 1):
        middle = ((one[0] + other[0]) / 2, (one[1] + other[1]) / 2)
        places = [
            (anchor[0] + across, anchor[1] + down)
            for anchor in (middle, one, other)
            for across, down in OFFSETS
        ]
        inside = [place for place in places if _is_inside(place, height)]
        free = next((place for place in inside if _is_free(place, taken, dots)), None)
        if free is None:
            continue
        taken.append(free)
        attributes = {"class": "strong halo", "x": free[0], "y": free[1], "text-anchor": "middle"}
        found.append(element("text", attributes, str(number)))
    return found


def _is_inside(place: Spot, height: float) -> bool:
    x, y = place
    return LABEL[0] / 2 < x < WIDTH - LABEL[0] / 2 and LABEL[1] < y < height - 3


def _is_free(place: Spot, taken: Sequence[Spot], dots: Sequence[Spot]) -> bool:
    x, y = place
    apart = all(abs(x - a) >= LABEL[0] or abs(y - b) >= LABEL[1] for a, b in taken)
    # A text's y is its baseline; its middle is about four pixels higher.
    off = all(abs(x - a) >= LABEL[0] / 2 + 2 or abs(y - 4 - b) >= LABEL[1] / 2 + 2 for a, b in dots)
    return apart and off
