"""Faster attention for mlx's CPU backend.

Of the time that mlx 0.32 spends on attention on x86, nine tenths are the exponentials of its
softmax, one scalar `exp` each (`cpu_kernels`). Here the same attention is put together from matrix
products and the vectorised exponential; the backward pass uses the weights of the forward pass
again, where mlx's computes them once more. Values agree with mlx's own to float32 rounding.
"""

from functools import partial
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models import base

from sempa_mlx import runtime
from sempa_mlx.model.cpu_kernels import exp_negative, row_blocks
from sempa_mlx.model.forest import Forest, ForestCache
from sempa_mlx.model.fused import stays_fused

FARTHEST = 64.0  # exp(-64) is 1e-28; beyond exp(-87) values get denormal and arithmetic slow
MASKED = float(mx.finfo(mx.float32).min) / 2  # a score of no weight; halved, sums stay finite
CAUSAL_CHUNK = 64  # queries that share their keys: all those up to the last one of them
KEPT_KEYS = 256  # of more keys, the weights are computed again for the gradient, not kept


@mx.custom_function
@stays_fused
def _softmax(scores: mx.array) -> mx.array:
    """Return softmax over the last axis of (rows, keys) float32 scores, block by block."""
    ones = mx.ones((scores.shape[1], 1))
    blocks = []
    for block in row_blocks(scores):
        rows = scores[block]
        distances = rows.max(axis=-1, keepdims=True) - rows
        weights = exp_negative(mx.minimum(distances, FARTHEST))
        blocks.append(weights / (weights @ ones))
    return mx.concatenate(blocks)


@_softmax.vjp
@stays_fused
def _softmax_vjp(_scores: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    ones = mx.ones((output.shape[1], 1))
    blocks = []
    for block in row_blocks(output):
        weights, pulls = output[block], cotangent[block]
        blocks.append(weights * (pulls - (weights * pulls) @ ones))
    return mx.concatenate(blocks)


def attention(  # noqa: PLR0913 - as mlx-lm calls it
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,  # noqa: ANN401 - whichever of mlx-lm's caches, or ours
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """Return what mlx-lm's `scaled_dot_product_attention` does, fast in float32 on a CPU.

    Queries are (rows, heads, length, dim), keys and values (rows, groups, keys, dim). A bool mask
    is True where a query sees a key, one of float32 is added to the scores, `causal` lets the last
    queries of a row see the keys up to each. Single queries, sinks, quantised caches and other
    precisions are left to mlx-lm: there is little to gain, or it needs float32.
    """
    is_float32 = queries.dtype == keys.dtype == values.dtype == mx.float32
    is_plain = sinks is None and not hasattr(cache, "bits")
    if isinstance(cache, ForestCache) and is_float32 and is_plain:
        return _attend_in_forest(queries, keys, values, scale, cache.forest)
    if not (is_float32 and is_plain) or queries.shape[2] == 1 or runtime.is_gpu():
        others = base.scaled_dot_product_attention
        return cast("mx.array", others(queries, keys, values, cache, scale, mask, sinks))
    if isinstance(mask, str):
        return _attend_causally(queries, keys, values, scale)
    return _attend(queries, keys, values, scale, mask)


def _attend_in_forest(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, forest: Forest
) -> mx.array:
    """Let the tokens of each branch see its earlier ones, and all of the branches it follows."""

    def gathered(array: mx.array, places: mx.array) -> mx.array:
        return mx.take(array[:, :, 0], places, axis=0).swapaxes(1, 2)

    found = []
    for group in forest.groups:
        own = gathered(queries, group.queries)
        seen = _attend(
            own, gathered(keys, group.keys), gathered(values, group.keys), scale, group.mask
        )
        found.append(seen.swapaxes(1, 2).reshape(-1, *queries.shape[1:]))
    return mx.take(mx.concatenate(found), forest.order, axis=0)


def _attend_causally(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Let a few queries at a time see the keys up to the last of them, and no others."""
    length, key_count = queries.shape[2], keys.shape[2]
    chunks = []
    for start in range(0, length, CAUSAL_CHUNK):
        own = queries[:, :, start : start + CAUSAL_CHUNK]
        before = key_count - length + start
        seen = before + own.shape[2]
        causal = mx.tril(mx.ones((own.shape[2], seen), dtype=mx.bool_), k=before)
        chunks.append(_attend(own, keys[:, :, :seen], values[:, :, :seen], scale, causal))
    return mx.concatenate(chunks, axis=2)


def _attend(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None
) -> mx.array:
    """Return attention under a mask; the weights of many keys are not kept for the gradient."""
    run = partial(_weigh, scale=scale, mask=mask)
    is_kept = keys.shape[2] <= KEPT_KEYS
    return (run if is_kept else mx.checkpoint(run))(queries, keys, values)


def _weigh(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None
) -> mx.array:
    rows, heads, length, dim = queries.shape
    groups, key_count = keys.shape[1:3]
    grouped = (queries * scale).reshape(rows, groups, -1, dim)
    scores = (grouped @ keys.swapaxes(-1, -2)).reshape(rows, heads, length, key_count)
    if mask is not None:
        is_bool = mask.dtype == mx.bool_
        scores = mx.where(mask, scores, MASKED) if is_bool else scores + mask
    weights = cast("mx.array", _softmax(scores.reshape(-1, key_count)))
    weights = weights.reshape(rows, groups, -1, key_count)
    return (weights @ values).reshape(rows, heads, length, values.shape[-1])
