"""What is given up for what: embeddings against generation along the adapter's scale."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sempa_mlx.data.records import StsTask
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.evaluation.generation import Drift
from sempa_mlx.evaluation.sts import evaluate_sts

SCALES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.25)


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """One scale: Spearman in [-1, 1] (NaN if undefined), the mean of the tasks, and the drift."""

    spearman: float
    drift: Drift

    @property
    def scale(self) -> float:
        """The adapter's scale."""
        return self.drift.scale


def frontier_points(
    encoder: Encoder,
    tasks: Sequence[StsTask],
    drifts: Sequence[Drift],
    on_progress: Callable[[int], None] | None = None,
) -> list[FrontierPoint]:
    """Embed at the scales at which a text was predicted, on the same set of weights.

    Args:
        encoder: a model with its adapter, and the method that embeds with it.
        tasks: one or more.
        drifts: what `text_drift` found with this model, one a scale.
        on_progress: called with the number of texts embedded.
    """
    found = []
    for drift in drifts:
        scores = evaluate_sts(encoder.with_scale(drift.scale), tasks, on_progress)
        spearman = float(np.mean([score.spearman for score in scores]))
        found.append(FrontierPoint(spearman, drift))
    return found


def on_frontier(points: Sequence[FrontierPoint]) -> list[bool]:
    """Tell which points no other beats: none is better in Spearman or KL and as good in the other.

    A point without a Spearman or KL is never on it.
    """
    return [
        not math.isnan(point.spearman + point.drift.kl.value)
        and not any(_beats(other, point) for other in points)
        for point in points
    ]


def _beats(one: FrontierPoint, other: FrontierPoint) -> bool:
    gain = one.spearman - other.spearman
    saving = other.drift.kl.value - one.drift.kl.value
    return gain >= 0 and saving >= 0 and (gain > 0 or saving > 0)
