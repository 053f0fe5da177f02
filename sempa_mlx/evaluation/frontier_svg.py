"""The frontier as one SVG file that needs nothing else: light or dark as the reader's system is."""

import math
from collections.abc import Callable, Sequence
from html import escape

from sempa_mlx.evaluation.frontier import FrontierPoint, on_frontier
from sempa_mlx.evaluation.ticks import NICE, nice_ticks

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 64, 32, 96, 64
INSET = 24  # of the outermost dots
MIN_TICK_GAP = 46  # between labels of the x axis
LEGEND = (
    "bold: scale of the adapter, below it perplexity; "
    "hollow: another scale has more Spearman and less KL"
)

STYLE = """
.frontier {
  --surface: #fcfcfb; --ink: #0b0b0b; --quiet: #52514e; --grid: #e3e2de; --line: #2a78d6;
}
@media (prefers-color-scheme: dark) {
  .frontier {
    --surface: #1a1a19; --ink: #ffffff; --quiet: #c3c2b7; --grid: #383835; --line: #3987e5;
  }
}
.frontier .ground { fill: var(--surface); }
.frontier text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
.frontier .title { font-size: 16px; font-weight: 600; fill: var(--ink); }
.frontier .scale { font-weight: 600; fill: var(--ink); }
.frontier .label { paint-order: stroke; stroke: var(--surface); stroke-width: 4px; }
.frontier .grid { stroke: var(--grid); stroke-width: 1; }
.frontier .path { fill: none; stroke: var(--line); stroke-width: 2; stroke-linejoin: round; }
.frontier .dot { fill: var(--line); stroke: var(--surface); stroke-width: 2; }
.frontier .beaten { fill: var(--surface); stroke: var(--line); }
""".strip()


def frontier_svg(points: Sequence[FrontierPoint], title: str) -> str:
    """Draw Spearman x 100 against mean KL to the base, one dot a scale.

    The KL axis is a square root: KL grows with about the square of the scale, so that dots lie
    evenly. Filled dots are on the frontier, hollow ones are beaten. Beside each dot stand its scale
    and its perplexity; pointing at it shows all its figures. Points without a Spearman or KL are
    left out.
    """
    kept = [
        (point, best)
        for point, best in zip(points, on_frontier(points), strict=True)
        if math.isfinite(point.spearman) and math.isfinite(point.drift.kl.value)
    ]
    levels = nice_ticks([point.spearman * 100 for point, _ in kept])
    most = max([point.drift.kl.value for point, _ in kept], default=0.0) or 1e-6

    def across(kl: float) -> float:
        share = math.sqrt(max(0.0, kl) / most)
        return LEFT + INSET + share * (WIDTH - LEFT - RIGHT - 2 * INSET)

    def down(spearman: float) -> float:
        share = (spearman - levels[0]) / (levels[-1] - levels[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    spots = [
        (across(point.drift.kl.value), down(point.spearman * 100), point, best)
        for point, best in kept
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in spots)
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" class="frontier">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{STYLE}\n</style>",
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>',
        _text(LEFT, 28, title, kind="title"),
        _text(LEFT, 48, LEGEND),
        *(_level(level, down(level)) for level in levels),
        *(_kl_tick(kl, across(kl)) for kl in _kl_ticks(most, across)),
        _text(LEFT, HEIGHT - 16, "mean KL to the base, nats a token (square-root axis)"),
        _text(LEFT - 40, TOP - 18, "Spearman x 100"),
        f'<polyline class="path" points="{path}"/>',
        *(_dot(x, y, point, best=best) for x, y, point, best in spots),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _kl_ticks(most: float, across: Callable[[float], float]) -> list[float]:
    """Return 0 and as many round values of KL, the largest first, as labels have room."""
    found = [0.0]
    power = math.floor(math.log10(most))
    steps = [nice * 10.0**exponent for exponent in range(power - 4, power + 1) for nice in NICE]
    for value in (step for step in reversed(steps) if step <= most):
        if all(abs(across(other) - across(value)) >= MIN_TICK_GAP for other in found):
            found.append(value)
    return found


def _text(x: float, y: float, text: str, *, kind: str = "", anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(text)}</text>'


def _level(value: float, y: float) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 8, y + 4, f"{value:g}", anchor="end")


def _kl_tick(value: float, x: float) -> str:
    y = HEIGHT - BOTTOM
    line = f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 6}"/>'
    return line + _text(x, y + 22, f"{value:g}", anchor="middle")


def _dot(x: float, y: float, point: FrontierPoint, *, best: bool) -> str:
    text, kl = point.drift.perplexity, point.drift.kl
    facts = (
        f"scale {point.scale:g}: Spearman {point.spearman * 100:.2f}, "
        f"perplexity {text.perplexity:.2f}, KL {kl.value:.4f}"
    )
    shape = f'<circle class="dot{"" if best else " beaten"}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    above = y - 14 if y - 36 > TOP - 18 else y + 34
    labels = (
        _text(x, above - 13, f"{point.scale:g}", kind="scale label", anchor="middle"),
        _text(x, above, f"{text.perplexity:.1f}", kind="label", anchor="middle"),
    )
    return f"<g><title>{escape(facts)}</title>{shape}{''.join(labels)}</g>"
