"""Ways to read one vector off a language model: a prompt around the text, and a pooling.

A new method is one row of the table.
"""

from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from sempa_mlx.data.templates import PROMPTEOL, RAW, EmbeddingTemplate

Pooling = Literal["last", "mean", "weighted-mean"]


@dataclass(frozen=True, slots=True)
class Method:
    """An embedding method: its template, and how final states become one vector."""

    name: str
    template: EmbeddingTemplate
    pooling: Pooling


METHODS = {
    method.name: method
    for method in (
        Method("prompteol", PROMPTEOL, "last"),
        Method("mean", RAW, "mean"),
        Method("weighted-mean", RAW, "weighted-mean"),
        Method("last", RAW, "last"),
    )
}


def pool(hidden: mx.array, lengths: mx.array, pooling: Pooling) -> mx.array:
    """Reduce (rows, tokens, dim) final states to (rows, dim) float32; pads have no weight.

    Args:
        hidden: states, padded on the right.
        lengths: (rows,) int32, real tokens of each row.
        pooling: `last` takes the last real token, `mean` averages the real tokens, `weighted-mean`
            weights token i of n by i (SGPT, arXiv 2202.08904).
    """
    if pooling == "last":
        return mx.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0].astype(
            mx.float32
        )
    positions = mx.arange(1, hidden.shape[1] + 1)[None, :]
    real = positions <= lengths[:, None]
    weights = mx.where(real, positions if pooling == "weighted-mean" else 1, 0).astype(mx.float32)
    weights = weights / weights.sum(axis=1, keepdims=True)
    # Pads are zeroed as well as unweighted: 0 * nan would be nan.
    states = mx.where(real[..., None], hidden.astype(mx.float32), 0.0)
    return (states * weights[..., None]).sum(axis=1)
