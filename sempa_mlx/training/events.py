"""What a training run tells while it goes on."""

from dataclasses import dataclass, field

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class StepDone:
    """An optimizer step: its metrics, under TRL's names."""

    step: int
    total: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class StepSkipped:
    """A step whose loss or gradient was not finite: no update was made.

    `rows` are indices as the trainer tells it, and lines of the file as a run does.
    """

    step: int
    rows: list[int]


@dataclass(frozen=True, slots=True)
class Score:
    """What an evaluation found: a score, higher is better, and at which scale of the adapter.

    `metrics` are logged as they are.
    """

    value: float
    scale: float = 1.0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation; `weights` are the adapter's if it is the best so far, else None."""

    step: int
    score: Score
    best_step: int
    weights: dict[str, mx.array] | None


@dataclass(frozen=True, slots=True)
class DialSearched:
    """The kept adapter, of step `step`, was tried at several scales; `scale` is the best."""

    step: int
    scale: float
    scores: dict[float, float]


Event = StepDone | StepSkipped | Evaluated | DialSearched
