"""The charts of a training run, from its metrics."""

import math
from collections.abc import Sequence

import numpy as np

from sempa_mlx.config_terms import REFERENCE_FREE, SCORE_NOTHING, parse_terms
from sempa_mlx.report.numbers import value_of
from sempa_mlx.report.outcome import DEV, Outcome
from sempa_mlx.report.run_record import RunRecord
from sempa_mlx.report.svg import Line, LineChart, Point

SHARE = 20  # a steady curve averages one step in so many
PREFIX = "loss/"  # of the terms of a loss that has several


def curve(record: RunRecord, name: str, factor: float = 1.0) -> list[Point]:
    """Return (step, value x factor) of the training steps that have a metric, NaN if undefined."""
    lines = (line for line in record.metrics if name in line and "best_step" not in line)
    return [(line["step"], value_of(line, name) * factor) for line in lines]


def evaluated(record: RunRecord, name: str, factor: float = 1.0) -> list[Point]:
    """Return (step, value x factor) of the evaluations that have a metric, NaN if undefined."""
    lines = (line for line in record.metrics if name in line and "best_step" in line)
    return [(line["step"], value_of(line, name) * factor) for line in lines]


def window(num_steps: int) -> int:
    """Return how many steps a steady curve averages: an odd number, a twentieth of the run."""
    return num_steps // SHARE // 2 * 2 + 1


def steady(points: Sequence[Point]) -> list[Point]:
    """Average each point with those around it, `window` steps in all, fewer at the ends.

    Values that are not finite are left out of the averages and stay as they are.
    """
    reach = window(len(points)) // 2
    if not reach:
        return []
    values = np.array([value for _, value in points], dtype=np.float64)
    is_finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.where(is_finite, values, 0.0).cumsum()])
    counts = np.concatenate([[0], is_finite.cumsum()])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    count = counts[high] - counts[low]
    means = (sums[high] - sums[low]) / np.maximum(count, 1)
    return [
        (step, float(mean) if fine else math.nan)
        for (step, _), mean, fine in zip(points, means, is_finite, strict=True)
    ]


def charts(record: RunRecord, outcome: Outcome) -> list[LineChart]:
    """Return the charts of a run, those without data included: the reader is told of them."""
    best = outcome.best_step

    def chart(title: str, *lines: Line) -> LineChart:
        return LineChart(title, lines, outcome.last_step, best)

    percent = 100.0
    return [
        *_score_charts(record, outcome),
        chart("Loss", _line(curve(record, "loss"))),
        *(
            chart(f"Loss, term {name}", _line(curve(record, PREFIX + name)))
            for name in _terms(record)
        ),
        chart("Reward margin, chosen − rejected", _line(curve(record, "rewards/margins"))),
        chart(
            "Accuracy: chosen above rejected, %",
            _line(curve(record, "rewards/accuracies", percent)),
        ),
        chart(*_ratios(record)),
    ]


def _line(points: list[Point], label: str = "", kind: str = "first") -> Line:
    return Line(points, label, kind, steady(points))


def _score_charts(record: RunRecord, outcome: Outcome) -> list[LineChart]:
    """Chart the score that chose the adapter, and what else was evaluated."""
    best, label = outcome.best_step, outcome.shown(outcome.best_in_training)
    if outcome.scale != 1 and len(outcome.dial) > 1:  # another scale was found better afterwards
        label += " at scale 1"
    peak = None
    if best and math.isfinite(outcome.best_in_training):
        peak = ((best, outcome.best_in_training), label)
    level = None
    if math.isfinite(outcome.base):
        level = (outcome.base, f"base {outcome.shown(outcome.base)}")
    title = outcome.name[0].upper() + outcome.name[1:]
    last = outcome.last_step
    found = [LineChart(title, [Line(outcome.scores)], last, best, level, peak)]
    others = {
        DEV: ("Dev Spearman × 100", 1.0),
        "eval/loss": ("Dev loss", 1.0),
        "eval/accuracies": ("Dev accuracy × 100", 100.0),
    }
    has_scales = any(key.startswith(f"{DEV}@") for line in record.metrics for key in line)
    for key, (other, factor) in others.items():
        points = evaluated(record, key, factor)
        if points and (key != outcome.key or (key == DEV and has_scales)):
            name = f"{other}, adapter at scale 1" if has_scales and key == DEV else other
            found.append(LineChart(name, [Line(points)], last, best))
    return found


def _terms(record: RunRecord) -> list[str]:
    """Return the terms of a loss that has several; they differ in size, so each has its chart."""
    keys = dict.fromkeys(key for line in record.metrics for key in line)
    return [key.removeprefix(PREFIX) for key in keys if key.startswith(PREFIX)]


def _ratios(record: RunRecord) -> tuple[str, Line, Line]:
    """Return log-ratios to the reference, or log-probabilities where a loss has no reference."""
    beta = record.number("objective.beta")
    if beta > 0 and not _is_reference_free(record):
        title, prefix, factor = "Log-ratio to the reference, nats", "rewards", 1 / beta
    else:
        title, prefix, factor = "Log-probability, nats", "logps", 1.0
    chosen, rejected = (
        curve(record, f"{prefix}/{side}", factor) for side in ("chosen", "rejected")
    )
    return title, _line(chosen, "chosen"), _line(rejected, "rejected", "second")


def compares_completions(record: RunRecord) -> bool:
    """Tell whether a term of the loss compares completions, so that beta has a meaning."""
    scored = _scoring_terms(record)
    return scored is None or bool(scored - {"sft"})


def _is_reference_free(record: RunRecord) -> bool:
    """Tell whether no term of the loss compares with the reference."""
    scored = _scoring_terms(record)
    return scored is not None and bool(scored) and scored <= {*REFERENCE_FREE, "sft"}


def _scoring_terms(record: RunRecord) -> set[str] | None:
    """Return the terms of the loss that score completions; None if it is of a later version."""
    try:
        return parse_terms(record.setting("objective.loss") or "").keys() - SCORE_NOTHING
    except ValueError:
        return None
