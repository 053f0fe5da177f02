"""How long a run is and how fast it learns: pure arithmetic."""

import math
from collections.abc import Sequence

from sempa_mlx.config import TrainConfig
from sempa_mlx.data.batching import step_batches


def plan_steps(lengths: Sequence[int], settings: TrainConfig) -> list[list[int]]:
    """Return the rows of every optimizer step, epoch after epoch, capped by `iters`.

    `lengths` are the rows' tokens: a step holds rows of like length.
    """
    per_epoch = math.ceil(len(lengths) / settings.batch_size)
    total = per_epoch * settings.epochs
    if settings.iters is not None:
        total = min(total, settings.iters)
    steps: list[list[int]] = []
    epoch = 0
    while len(steps) < total:
        steps += step_batches(lengths, settings.batch_size, settings.seed, epoch)
        epoch += 1
    return steps[:total]


def learning_rate(step: int, total: int, settings: TrainConfig) -> float:
    """Return the rate of one step: linear warm-up from above 0, then the schedule.

    Args:
        step: 1 to `total`.
        total: optimizer steps of the run.
        settings: peak rate, warm-up share of the steps, and `cosine` or `linear` (both end at 0
            after the last step) or `constant`.
    """
    warmup = math.ceil(total * settings.warmup)
    if step <= warmup:
        return settings.learning_rate * step / warmup
    progress = (step - 1 - warmup) / max(1, total - warmup)
    factor = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }[settings.schedule]
    return settings.learning_rate * factor
