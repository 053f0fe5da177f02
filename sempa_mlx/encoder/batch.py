"""One batch of texts in the prompts of a method: run them, and pool their states."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from sempa_mlx.model.hidden_states import MakeTaps, Row, StateReader
from sempa_mlx.model.prompt_shape import PromptShape

Pooling = Literal["last", "mean", "weighted-mean"]


@dataclass(frozen=True, slots=True)
class Batch:
    """The token rows of a batch: `rows[p][t]` is text t in prompt p, shaped as `shapes[p]` says."""

    reader: StateReader
    shapes: tuple[PromptShape, ...]
    rows: tuple[tuple[Row, ...], ...]
    pooling: Pooling

    def pooled(
        self, prompt: int, layers: Collection[int], make_taps: MakeTaps | None = None
    ) -> dict[int, mx.array]:
        """Run all texts in one prompt, under taps if any; return (texts, dim) float32 by layer."""
        rows, shape = self.rows[prompt], self.shapes[prompt]
        starts = [self._start(len(row), shape) for row in rows]
        most_shared = min(starts)
        if shape.placeholder is not None:
            most_shared = min(most_shared, shape.placeholder)
        if self.pooling == "last" and make_taps is None and set(layers) == {self.reader.depth}:
            ends = self.reader.read_ends(rows, most_shared=most_shared)
            return {self.reader.depth: ends.astype(mx.float32)}
        states, positions = self.reader.read(
            rows, layers, most_shared=most_shared, make_taps=make_taps
        )
        after = mx.array([start - positions.shared for start in starts])
        return {
            layer: pool(states[layer], positions.lengths, self.pooling, after) for layer in layers
        }

    def _start(self, length: int, shape: PromptShape) -> int:
        """Return the first token of a row that counts for its vector."""
        if shape.frame is not None:
            return shape.second_copy(length)
        return length - 1 if self.pooling == "last" else 0


def pool(
    hidden: mx.array, lengths: mx.array, pooling: Pooling, starts: mx.array | None = None
) -> mx.array:
    """Reduce (rows, tokens, dim) states to (rows, dim) float32; pads have no weight.

    Args:
        hidden: states, padded on the right.
        lengths: (rows,) int32, real tokens of each row.
        pooling: `last` takes the last real token, `mean` averages the real tokens, `weighted-mean`
            weights token i of n by i (SGPT, arXiv 2202.08904).
        starts: (rows,) int32, the first token that counts in each row; by default 0.
    """
    if pooling == "last":
        return mx.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0].astype(
            mx.float32
        )
    starts = mx.zeros_like(lengths) if starts is None else starts
    ranks = mx.arange(1, hidden.shape[1] + 1)[None, :] - starts[:, None]
    counts = (ranks >= 1) & (ranks <= (lengths - starts)[:, None])
    weights = mx.where(counts, ranks if pooling == "weighted-mean" else 1, 0).astype(mx.float32)
    weights = weights / weights.sum(axis=1, keepdims=True)
    # Pads are zeroed as well as unweighted: 0 * nan would be nan.
    states = mx.where(counts[..., None], hidden.astype(mx.float32), 0.0)
    return (states * weights[..., None]).sum(axis=1)


def one_row_a_prompt(texts: Sequence[tuple[Row, ...]]) -> tuple[tuple[Row, ...], ...]:
    """Turn the rows of texts, one a prompt, into the rows of prompts, one a text."""
    return tuple(zip(*texts, strict=True))
