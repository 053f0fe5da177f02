"""What a run writes down of its events: lines of metrics.jsonl, in which there is no NaN."""

import math
from typing import Any

from sempa_mlx.training.events import DialSearched, Evaluated, Event, StepDone


def defined(score: float | None) -> float | None:
    """Return None for NaN, the score of vectors that are all alike: JSON knows no NaN."""
    return None if score is None or math.isnan(score) else score


def as_record(event: Event) -> dict[str, Any]:
    """Return an event as one line of metrics.jsonl."""
    if isinstance(event, StepDone):
        return {"step": event.step, **event.metrics}
    if isinstance(event, Evaluated):
        metrics = {name: defined(value) for name, value in event.score.metrics.items()}
        return {"step": event.step, **metrics, "best_step": event.best_step}
    if isinstance(event, DialSearched):
        scores = {f"{scale:g}": defined(score) for scale, score in event.scores.items()}
        return {"step": event.step, "best_scale": event.scale, "dial": scores}
    return {"step": event.step, "skipped_rows": event.rows}
