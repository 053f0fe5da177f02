"""What one term of the loss adds to an optimizer step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_map

from sempa_mlx.world import World

Gradients = dict[str, Any]  # a tree of arrays, as the model's trainable parameters


@dataclass(slots=True)
class Contribution:
    """Weighted loss and gradients of one term, over this process's share of a batch.

    `expected_loss` is what the loss must be while the adapter changes nothing (None: unknown).
    `rewards` and `logps` hold one list of K numbers a pair, for the metrics, if the term looks at
    pairs at all; `tokens` were run. `parts` are the losses by name where a term has several.
    """

    loss: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    has_pairs: bool = False
    expected_loss: float | None = None
    gradients: Gradients = field(default_factory=dict)
    rewards: list[list[float]] = field(default_factory=list)
    logps: list[list[float]] = field(default_factory=list)
    tokens: int = 0

    def add(self, gradients: Gradients) -> None:
        """Add the gradients of one forward pass, and compute them now: its graph is freed."""
        total = tree_map(mx.add, self.gradients, gradients) if self.gradients else gradients
        mx.eval(total)
        self.gradients = total


class Term(Protocol):
    """A part of the loss."""

    def contribution(self, batch: Sequence[int], world: World, seed: int) -> Contribution:
        """Return weighted loss and gradients of a batch of rows, given by their indices."""

    def largest_pass(self, batches: Sequence[Sequence[int]]) -> list[int]:
        """Return the rows of the largest forward pass over these batches, the longest last."""


def pair_metrics(
    rewards: Sequence[Sequence[float]], logps: Sequence[Sequence[float]]
) -> dict[str, float]:
    """Return sums over pairs, under TRL's names; accuracy counts pairs, not batches.

    The chosen completion is the first of a row, the rejected one the last.
    """
    chosen = [row[0] for row in rewards]
    rejected = [row[-1] for row in rewards]
    return {
        "rewards/chosen": sum(chosen),
        "rewards/rejected": sum(rejected),
        "rewards/margins": sum(chosen) - sum(rejected),
        "rewards/accuracies": float(sum(c > r for c, r in zip(chosen, rejected, strict=True))),
        "logps/chosen": sum(row[0] for row in logps),
        "logps/rejected": sum(row[-1] for row in logps),
    }
