"""Which way to score completions on a model: shared prefixes where they are exact, else plain."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx.errors import UsageError
from sempa_mlx.model.forward import (
    GROUPED_MASK_RANK,
    PLAIN_MASK_RANK,
    SharedPrefixUnsupportedError,
    TokenRow,
    common_prefix,
    score_plain,
    score_shared,
)

# Largest difference to the plain path, in nats per scored token, that rounding can explain.
TOLERANCE = {mx.float32: 1e-4, mx.float16: 2e-2, mx.bfloat16: 1e-1}


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores preference rows: (rows) -> (rows, K) float32 log-probabilities."""

    shared: int
    mask_rank: int | None

    @property
    def path(self) -> str:
        """Name the path: `shared` or `plain`."""
        return "plain" if self.mask_rank is None else "shared"

    def __call__(self, model: nn.Module, rows: Sequence[TokenRow]) -> mx.array:
        """Return the log-probability of every completion, summed over its tokens."""
        if self.mask_rank is None:
            return score_plain(model, rows)
        return score_shared(model, rows, self.shared, self.mask_rank)

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
    model: nn.Module, rows: Sequence[TokenRow], dtype: mx.Dtype, wanted: str = "auto"
) -> Scorer:
    """Find the fastest way that gives this model's own log-probabilities on its longest rows.

    The shared path is tried on a probe of the longest prompt, the longest completions and the
    shortest prompt, and taken only if it equals the plain path there: sliding windows shorter than
    the rows, state-space layers and unknown attention code fall back to the plain path.

    Args:
        model: the model as it will be trained.
        rows: all rows of the run.
        dtype: the model's precision, which sets how equal the two paths must be.
        wanted: `auto`, `plain`, or `shared` (then not fitting is an error).

    Raises:
        UsageError: `wanted` is `shared` and the model does not fit.
    """
    if wanted == "plain":
        return Scorer(shared=0, mask_rank=None)
    shared = common_prefix([row.prompt for row in rows])
    probe = [
        max(rows, key=lambda row: len(row.prompt)),
        max(rows, key=lambda row: max(map(len, row.completions))),
        min(rows, key=lambda row: len(row.prompt)),
    ]
    expected = score_plain(model, probe)
    scored = sum(len(completion) for row in probe for completion in row.completions)
    allowed = TOLERANCE[dtype] * max(1.0, scored / len(probe))
    for mask_rank in (PLAIN_MASK_RANK, GROUPED_MASK_RANK):
        try:
            found = score_shared(model, probe, shared, mask_rank)
            difference = float(np.abs(np.array(found) - np.array(expected)).max())
        except (SharedPrefixUnsupportedError, ValueError, TypeError, AttributeError, IndexError):
            continue
        if difference <= allowed:
            return Scorer(shared, mask_rank)
    if wanted == "shared":
        raise UsageError("this model cannot score with a shared prefix; use train.scoring: plain")
    return Scorer(shared=0, mask_rank=None)
