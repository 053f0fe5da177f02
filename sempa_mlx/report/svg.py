"""Line charts and maps of points as inline SVG: numbers in, text out; colours come from the page.

Sizes are CSS pixels at the width that a phone has, so that text stays readable on one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from sempa_mlx.evaluation.ticks import nice_ticks, tick_labels
from sempa_mlx.report.markup import Markup, element

WIDTH, HEIGHT = 380, 220
TOP, BOTTOM = 22, 34
CHARACTER = 7.0  # width of an average one of a label, rounded up
LINE_GAP = 14.0  # between labels below each other
MAX_POINTS = 600  # of a line: more than its pixels show

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """Values over steps; a value that is not finite leaves a gap.

    `steady`, if given, is drawn boldly over `points`, which are then faint. `kind` is the colour:
    `first` or `second`.
    """

    points: Sequence[Point]
    label: str = ""
    kind: str = "first"
    steady: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class LineChart:
    """One or more lines over steps, with what is marked in them.

    The axis of steps goes from 0 to `last_step`, so that charts of a run can be compared.
    `best_step` gets a vertical line, `level` a horizontal one with its label; `peak` is a point
    with a label of its own.
    """

    title: str
    lines: Sequence[Line]
    last_step: int
    best_step: int | None = None
    level: tuple[float, str] | None = None
    peak: tuple[Point, str] | None = None

    @property
    def has_data(self) -> bool:
        """Tell whether any value can be drawn."""
        return any(math.isfinite(value) for line in self.lines for _, value in line.points)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where the values of a chart lie on the paper."""

    last_step: float
    levels: tuple[float, float]
    left: float
    right: float

    def x(self, step: float) -> float:
        return self.left + step / self.last_step * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.levels
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP)


def line_chart(chart: LineChart) -> Markup:
    """Draw a chart that has data.

    Raises:
        ValueError: there is not one finite value.
    """
    finite = [point for line in chart.lines for point in line.points if math.isfinite(point[1])]
    if not finite:
        raise ValueError(f"nothing to draw in {chart.title}")
    values = [value for _, value in finite] + ([chart.level[0]] if chart.level else [])
    levels = nice_ticks(values)
    labels = tick_labels(levels)
    longest = max(len(_end_label(line)) for line in chart.lines)
    frame = _Frame(
        max(chart.last_step, 1.0),
        (levels[0], levels[-1]),
        left=10 + CHARACTER * max(map(len, labels)),
        right=WIDTH - 14 - CHARACTER * longest,
    )
    return element(
        "svg",
        {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": describe(chart)},
        *(_level(frame, level, label) for level, label in zip(levels, labels, strict=True)),
        *_step_axis(frame),
        *_marks(frame, chart),
        *(_drawn(frame, line) for line in chart.lines),
        *_end_labels(frame, chart.lines),
        *_peak(frame, chart),
    )


def describe(chart: LineChart) -> str:
    """Say in words what a chart shows, for those who do not see it."""
    parts = []
    for line in chart.lines:
        finite = [point for point in line.points if math.isfinite(point[1])]
        if finite:
            (first, start), (last, end) = finite[0], finite[-1]
            name = f"{line.label}: " if line.label else ""
            parts.append(f"{name}{start:.4g} at step {first:g}, {end:.4g} at step {last:g}")
    best = f"; best step {chart.best_step}" if chart.best_step is not None else ""
    return f"{chart.title}: {'; '.join(parts)}{best}"


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """Return at most `most` (2 or more) of the points, evenly spread, the first and last of all."""
    if len(points) <= most:
        return list(points)
    return [points[index * (len(points) - 1) // (most - 1)] for index in range(most)]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> Markup:
    attributes = {"x": x, "y": y, "text-anchor": anchor, "class": kind or None}
    return element("text", attributes, text)


def _level(frame: _Frame, level: float, label: str) -> Markup:
    y = frame.y(level)
    line = {"class": "grid", "x1": frame.left, "x2": frame.right, "y1": y, "y2": y}
    return element(
        "g", {}, element("line", line), _text(frame.left - 6, y + 4, label, anchor="end")
    )


def _step_axis(frame: _Frame) -> list[Markup]:
    ticks = [tick for tick in nice_ticks([0, frame.last_step], 7) if tick <= frame.last_step]
    whole = [tick for tick in ticks if abs(tick - round(tick)) < 1e-9]
    y = HEIGHT - BOTTOM + 16
    return [
        *(_text(frame.x(tick), y, f"{tick:,.0f}", anchor="middle") for tick in whole),
        _text((frame.left + frame.right) / 2, y + 14, "step", anchor="middle"),
    ]


def _marks(frame: _Frame, chart: LineChart) -> list[Markup]:
    found = []
    if chart.best_step is not None and 0 <= chart.best_step <= frame.last_step:
        x = frame.x(chart.best_step)
        line = {"class": "best", "x1": x, "x2": x, "y1": TOP - 6, "y2": HEIGHT - BOTTOM}
        anchor = _anchor(x, frame)
        label = _text(x, TOP - 10, f"best step {chart.best_step}", anchor=anchor)
        found += [element("line", line), label]
    if chart.level is not None:
        y = frame.y(chart.level[0])
        line = {"class": "level", "x1": frame.left, "x2": frame.right, "y1": y, "y2": y}
        found += [element("line", line), _text(frame.right, y + 14, chart.level[1], "halo", "end")]
    return found


def _anchor(x: float, frame: _Frame) -> str:
    """Return on which side of x a label has room."""
    if x - frame.left < 50:
        return "start"
    return "end" if frame.right - x < 50 else "middle"


def _drawn(frame: _Frame, line: Line) -> Markup:
    if not line.steady:
        return _path(frame, line.points, line.kind)
    faint = _path(frame, line.points, f"{line.kind} faint")
    return element("g", {}, faint, _path(frame, line.steady, line.kind))


def _path(frame: _Frame, points: Sequence[Point], kind: str) -> Markup:
    """Draw the stretches of finite values; one that has a single value is a dot."""
    parts = []
    for is_finite, group in groupby(thinned(points), key=lambda point: math.isfinite(point[1])):
        if not is_finite:
            continue
        spots = [(frame.x(step), frame.y(value)) for step, value in group]
        if len(spots) == 1:
            (x, y) = spots[0]
            parts.append(element("circle", {"class": f"dot {kind}", "cx": x, "cy": y, "r": 2.5}))
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            parts.append(element("polyline", {"class": f"line {kind}", "points": path}))
    return element("g", {}, *parts)


def _last(line: Line) -> Point | None:
    drawn = line.steady or line.points
    return next((point for point in reversed(drawn) if math.isfinite(point[1])), None)


def _end_label(line: Line) -> str:
    return line.label if _last(line) else ""


def _end_labels(frame: _Frame, lines: Sequence[Line]) -> list[Markup]:
    """Name lines at their ends, from top to bottom, moved apart where they would overlap."""
    named = [(frame.y(last[1]), line) for line in lines if line.label and (last := _last(line))]
    ends = sorted(named, key=lambda end: end[0]) if len(lines) > 1 else []
    heights = [y for y, _ in ends]
    for index, (above, below) in enumerate(pairwise(heights)):
        heights[index + 1] = max(below, above + LINE_GAP)
    return [
        _text(frame.right + 6, y + 4, line.label, f"label {line.kind}")
        for y, (_, line) in zip(heights, ends, strict=True)
    ]


def _peak(frame: _Frame, chart: LineChart) -> list[Markup]:
    if chart.peak is None:
        return []
    (step, value), label = chart.peak
    x, y = frame.x(step), frame.y(value)
    above = y - 9 if y - 9 > TOP + 4 else y + 18
    dot = element("circle", {"class": "peak", "cx": x, "cy": y, "r": 4})
    has_room = frame.right - x > CHARACTER * len(label)  # beside the line of the best step
    beside, anchor = (x + 6, "start") if has_room else (x - 6, "end")
    return [dot, _text(beside, above, label, "strong halo", anchor)]
