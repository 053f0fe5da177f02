"""Which way to score completions on a model: shared prefixes where they are exact, else plain."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx.errors import UsageError
from sempa_mlx.model.checkpointed import check_gradients, checkpointed
from sempa_mlx.model.completions import (
    UNCUT,
    TargetStates,
    TokenRow,
    forest_states,
    plain_states,
    score_forest,
    score_plain,
    score_shared,
    shared_states,
)
from sempa_mlx.model.forest import can_be_forest
from sempa_mlx.model.forward import (
    GROUPED_MASK_RANK,
    PLAIN_MASK_RANK,
    SharedPrefixUnsupportedError,
    common_prefix,
)
from sempa_mlx.model.head import target_logps, trained_logps

# Largest difference to the plain path, in nats per scored token, that rounding can explain.
TOLERANCE = {mx.float32: 1e-4, mx.float16: 2e-2, mx.bfloat16: 1e-1}


class Scored(NamedTuple):
    """Log-probabilities of completions in nats, each (rows, K) float32.

    `sums` counts every token of a completion, `tails` those beyond the length of the row's shortest
    completion.
    """

    sums: mx.array
    tails: mx.array


def score_states(model: nn.Module, states: TargetStates, *, training: bool = False) -> Scored:
    """Run the head on found states; `training` saves memory where a gradient will be taken."""
    head = trained_logps if training else target_logps
    logps = head(model, states.hidden, states.targets)
    tails = mx.where(states.is_tail, logps, 0.0)
    return Scored(states.per_completion(logps), states.per_completion(tails))


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores preference rows, by shared prompts where the model allows.

    With `checkpoint`, blocks are computed again in the backward pass: less memory, more time. With
    `forest`, shared prompts run in one pass without padding: the same values, faster on a CPU.
    """

    shared: int
    mask_rank: int | None
    checkpoint: bool = False
    forest: bool = field(default=False, compare=False)

    @property
    def path(self) -> str:
        """Name the path: `shared` or `plain`."""
        return "plain" if self.mask_rank is None else "shared"

    def states(self, model: nn.Module, rows: Sequence[TokenRow]) -> TargetStates:
        """Return the final states that predict completion tokens."""
        with checkpointed(model) if self.checkpoint else nullcontext():
            if self.mask_rank is None:
                return plain_states(model, rows)
            if self.forest:
                return forest_states(model, rows, self.shared)
            return shared_states(model, rows, self.shared, self.mask_rank)

    def __call__(self, model: nn.Module, rows: Sequence[TokenRow]) -> Scored:
        """Return the log-probabilities of every completion."""
        return score_states(model, self.states(model, rows))

    def own_tokens(self, row: TokenRow) -> int:
        """Count the tokens that a row adds to a forward pass, padding left out."""
        if self.mask_rank is None:
            return sum(len(row.prompt) + len(completion) for completion in row.completions)
        # The last token of a completion predicts nothing that is scored, and is not run.
        completions = sum(max(1, len(completion) - 1) for completion in row.completions)
        return len(row.prompt) - self.shared + completions

    def tokens(self, rows: Sequence[TokenRow]) -> int:
        """Count the tokens that one forward pass over `rows` has to run, padding left out."""
        return self.shared + sum(map(self.own_tokens, rows))


def choose_scoring(
    model: nn.Module,
    rows: Sequence[TokenRow],
    dtype: mx.Dtype,
    wanted: str = "auto",
    *,
    checkpoint: bool = False,
) -> Scorer:
    """Find the fastest way that gives this model's own log-probabilities on its longest rows.

    The shared path is tried on a probe of the longest prompt, the longest completions and the
    shortest prompt, padded to each other, and taken only if it equals the plain path there: sliding
    windows shorter than the rows, state-space layers and unknown attention code fall back to the
    plain path.

    Args:
        model: the model as it will be trained.
        rows: all rows of the run.
        dtype: the model's precision, which sets how equal the two paths must be.
        wanted: `auto`, `plain`, or `shared` (then not fitting is an error).
        checkpoint: whether to compute blocks again in the backward pass. It is tried on the
            shortest row, and an error if its gradients are not those of the usual way.

    Raises:
        UsageError: `wanted` is `shared`, or `checkpoint` is set, and the model does not fit.
    """
    scorer = _fastest_exact(model, rows, dtype, wanted)
    if not checkpoint:
        return scorer
    saving = replace(scorer, checkpoint=True, forest=False)
    shortest = [min(rows, key=scorer.own_tokens)]
    check_gradients(
        model,
        lambda: scorer(model, shortest).sums.sum(),
        lambda: saving(model, shortest).sums.sum(),
        dtype,
    )
    return saving


def _fastest_exact(
    model: nn.Module, rows: Sequence[TokenRow], dtype: mx.Dtype, wanted: str
) -> Scorer:
    if wanted == "plain":
        return Scorer(shared=0, mask_rank=None)
    shared = common_prefix([row.prompt for row in rows])
    probe = [
        max(rows, key=lambda row: len(row.prompt)),
        max(rows, key=lambda row: max(map(len, row.completions))),
        min(rows, key=lambda row: len(row.prompt)),
    ]
    expected = np.array(score_plain(model, probe))
    scored = sum(len(completion) for row in probe for completion in row.completions)
    allowed = TOLERANCE[dtype] * max(1.0, scored / len(probe))

    def is_exact(score: Callable[[], mx.array]) -> bool:
        try:
            return float(np.abs(np.array(score()) - expected).max()) <= allowed
        except (SharedPrefixUnsupportedError, ValueError, TypeError, AttributeError, IndexError):
            return False

    for mask_rank in (PLAIN_MASK_RANK, GROUPED_MASK_RANK):
        if is_exact(partial(score_shared, model, probe, shared, mask_rank, UNCUT)):
            forest = can_be_forest(dtype) and is_exact(partial(score_forest, model, probe, shared))
            return Scorer(shared, mask_rank, forest=forest)
    if wanted == "shared":
        raise UsageError("this model cannot score with a shared prefix; use train.scoring: plain")
    return Scorer(shared=0, mask_rank=None)
