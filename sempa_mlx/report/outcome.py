"""What the evaluations of a run say: base, best, and how it got there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sempa_mlx.report.numbers import shown, value_of
from sempa_mlx.report.run_record import RunRecord

DEV = "dev/spearman"
METRICS = {  # setting eval.metric: key in metrics.jsonl, name, factor, digits
    "spearman": (DEV, "dev Spearman × 100", 1.0, 2),
    "loss": ("eval/loss", "dev loss", 1.0, 4),
    "accuracy": ("eval/accuracies", "dev accuracy × 100", 100.0, 1),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The score that chose the adapter; NaN where it is undefined or was never measured.

    Attributes:
        key: of the score in metrics.jsonl.
        name: of the score.
        digits: to show of it.
        scores: (step, score) of every evaluation, at the best of the scales tried there.
        best_step: of the adapter that was kept; None without evaluations. 0 is the base.
        dial: scale to score, for scales that were tried after training.
        scale: of the adapter, as kept.
        last_step: the last training step in the log.
    """

    key: str
    name: str
    digits: int
    scores: tuple[tuple[int, float], ...]
    best_step: int | None
    dial: Mapping[float, float]
    scale: float
    last_step: int

    @property
    def base(self) -> float:
        """The score of the base, step 0."""
        return dict(self.scores).get(0, math.nan)

    @property
    def best_in_training(self) -> float:
        """The score at the best step, before other scales were tried."""
        return (
            math.nan if self.best_step is None else dict(self.scores).get(self.best_step, math.nan)
        )

    @property
    def best(self) -> float:
        """The score of the adapter as it was kept."""
        return self.dial.get(self.scale, self.best_in_training)

    def shown(self, score: float, sign: str = "") -> str:
        """Write a score, or that it is undefined."""
        return shown(score, self.digits, sign)


def read_outcome(record: RunRecord) -> Outcome:
    """Read the outcome from the lines of metrics.jsonl alone: a run that goes on has one, too."""
    key, name, factor, digits = METRICS.get(f"{record.setting('eval.metric')}", METRICS["spearman"])
    evaluations = [line for line in record.metrics if "best_step" in line]
    scores = tuple((line["step"], factor * _score(line, key)) for line in evaluations)
    best_step = evaluations[-1]["best_step"] if evaluations else None
    dial: dict[float, float] = {}
    scale = 1.0
    for line in record.metrics:
        if isinstance(line.get("dial"), dict):
            dial = {_number(each): value_of(line["dial"], each) for each in line["dial"]}
            scale = value_of(line, "best_scale")
        elif line.get("best_step") == line["step"]:
            found = _scale(line, key)
            scale = scale if found is None else found
    steps = [line["step"] for line in record.metrics]
    is_step = type(best_step) is int
    return Outcome(
        *(key, name, digits, scores, best_step if is_step else None, dial, scale),
        max(steps, default=0),
    )


def _score(line: Mapping[str, Any], key: str) -> float:
    """Return the best score of an evaluation over the scales tried in it."""
    found = [value_of(line, each) for each in _keys(line, key)]
    defined = [value for value in found if not math.isnan(value)]
    return max(defined, default=math.nan)


def _scale(line: Mapping[str, Any], key: str) -> float | None:
    """Return the scale of the best score of an evaluation; None if none is defined."""
    found = {_scale_in(each): value_of(line, each) for each in _keys(line, key)}
    defined = {scale: value for scale, value in found.items() if not math.isnan(value)}
    return max(defined, key=lambda scale: (defined[scale], scale), default=None)


def _keys(line: Mapping[str, Any], key: str) -> list[str]:
    return [each for each in line if each == key or each.startswith(f"{key}@")]


def _scale_in(key: str) -> float:
    _, _, scale = key.partition("@")
    return _number(scale) if scale else 1.0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
