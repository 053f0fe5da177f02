"""Which adapter is the best, and at which scale: the score that decides while a run goes on."""

import math
from collections.abc import Iterable

import numpy as np

from sempa_mlx.config import EvalConfig
from sempa_mlx.data.records import StsTask
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.evaluation.geometry import measure_geometry
from sempa_mlx.evaluation.sts import distinct_sentences, score_vectors
from sempa_mlx.training.events import Score
from sempa_mlx.training.preference_term import PreferenceTerm

FULL = 1.0


class DevEvaluation:
    """Scores the model as it is: Spearman x 100 on dev pairs, loss and accuracy on dev rows.

    How evenly the dev sentences' embeddings are spread at full scale is measured beside it.
    """

    def __init__(
        self,
        encoder: Encoder,
        task: StsTask,
        settings: EvalConfig,
        validation: PreferenceTerm | None,
    ) -> None:
        """Keep what an evaluation needs; `validation` scores dev rows, if there are any."""
        self._encoder, self._task, self._settings = encoder, task, settings
        self._validation = validation

    def __call__(self, step: int) -> Score:
        """Evaluate after a step; the base, step 0, is the same at every scale."""
        settings = self._settings
        # Only Spearman is measured along the dial: a run chosen by another score keeps full scale.
        is_dialled = settings.dial_always and settings.metric == "spearman" and step
        tried = settings.dial or () if is_dialled else ()
        vectors = self._vectors(FULL)
        found = self.spearman(scale for scale in tried if scale != FULL)
        found[FULL] = self._spearman_of(vectors)
        scale = best_scale(found)
        metrics = {_name(each): value for each, value in found.items()} | spread(vectors)
        if self._validation is not None:
            metrics |= self._validation.measure(is_base=step == 0)
        value = {
            "spearman": found[scale],
            "loss": -metrics.get("eval/loss", math.nan),
            "accuracy": metrics.get("eval/accuracies", math.nan),
        }[settings.metric]
        return Score(value, scale, metrics)

    @property
    def num_rows(self) -> int:
        """How many dev rows are scored."""
        return 0 if self._validation is None else self._validation.num_rows

    def spearman(self, scales: Iterable[float]) -> dict[float, float]:
        """Return the dev Spearman x 100 with the adapter at each of these scales."""
        return {scale: self._spearman_of(self._vectors(scale)) for scale in scales}

    def _vectors(self, scale: float) -> np.ndarray:
        """Embed the dev set's distinct sentences with the adapter at this scale, (n, dim)."""
        return self._encoder.with_scale(scale).encode(distinct_sentences([self._task]))

    def _spearman_of(self, vectors: np.ndarray) -> float:
        return score_vectors([self._task], vectors)[0].spearman * 100


def spread(vectors: np.ndarray) -> dict[str, float]:
    """Measure how evenly embeddings are spread; NaN where that is undefined (`Geometry`)."""
    names = ("dev/uniformity", "dev/average_cosine", "dev/isotropy")
    if not np.isfinite(vectors).all():
        return dict.fromkeys(names, math.nan)
    found = measure_geometry(vectors)
    values = (found.uniformity, found.average_cosine, found.partition_isotropy)
    return dict(zip(names, values, strict=True))


def best_scale(found: dict[float, float]) -> float:
    """Return the scale with the best score; equal ones go to the largest, undefined ones lose."""
    defined = {scale: score for scale, score in found.items() if not math.isnan(score)}
    return max(defined or found, key=lambda scale: (defined.get(scale, 0.0), scale))


def _name(scale: float) -> str:
    return "dev/spearman" if scale == FULL else f"dev/spearman@{scale:g}"
