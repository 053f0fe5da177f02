"""Which adapter is the best, and at which scale: the score that decides while a run goes on."""

import math
from collections.abc import Sequence

from sempa_mlx.config import EvalConfig
from sempa_mlx.data.records import StsTask
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.evaluation.sts import evaluate_sts
from sempa_mlx.training.events import Score
from sempa_mlx.training.preference_term import PreferenceTerm

FULL = 1.0


class DevEvaluation:
    """Scores the model as it is: Spearman x 100 on dev pairs, loss and accuracy on dev rows."""

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
        tried = (*(settings.dial or ()), FULL) if settings.dial_always and step else (FULL,)
        found = self.spearman(tried)
        scale = best_scale(found)
        metrics = {_name(each): value for each, value in found.items()}
        if self._validation is not None:
            metrics |= self._validation.measure()
        value = {
            "spearman": found[scale],
            "loss": -metrics.get("eval/loss", math.nan),
            "accuracy": metrics.get("eval/accuracies", math.nan),
        }[settings.metric]
        return Score(value, scale, metrics)

    def spearman(self, scales: Sequence[float]) -> dict[float, float]:
        """Return the dev Spearman x 100 with the adapter at each of these scales."""
        return {scale: self._spearman_at(scale) for scale in scales}

    def _spearman_at(self, scale: float) -> float:
        return evaluate_sts(self._encoder.with_scale(scale), [self._task])[0].spearman * 100


def best_scale(found: dict[float, float]) -> float:
    """Return the scale with the best score; equal ones go to the largest, undefined ones lose."""
    defined = {scale: score for scale, score in found.items() if not math.isnan(score)}
    return max(defined or found, key=lambda scale: (defined.get(scale, 0.0), scale))


def _name(scale: float) -> str:
    return "dev/spearman" if scale == FULL else f"dev/spearman@{scale:g}"
