"""A mean and how far chance may have moved it. No mlx here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over `count` items and its standard error; NaN where either is undefined."""

    value: float
    standard_error: float
    count: int


def plain_mean(values: Sequence[float]) -> Mean:
    """Take a mean, with the sample standard deviation over the square root of n, as lm-eval does.

    The error of fewer than two values is undefined.
    """
    count = len(values)
    array = np.asarray(values, dtype=np.float64)
    value = float(array.mean()) if count else math.nan
    error = float(array.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Mean(value, error, count)


def pooled_mean(parts: Sequence[Sequence[float]]) -> Mean:
    """Take the mean over all values of fixed parts, such as the subjects of MMLU.

    Only the spread inside the parts is chance: their deviations are pooled, as lm-eval does for a
    group of tasks. A part of one value has no deviation to offer; parts of nothing else leave the
    error undefined.
    """
    arrays = [np.asarray(part, dtype=np.float64) for part in parts if len(part)]
    count = sum(map(len, arrays))
    value = sum(float(array.sum()) for array in arrays) / count if count else math.nan
    freedom = count - len(arrays)
    squares = sum(float(((array - array.mean()) ** 2).sum()) for array in arrays)
    error = math.sqrt(squares / freedom / count) if freedom else math.nan
    return Mean(value, error, count)


def clustered_mean(sums: Sequence[float], counts: Sequence[int]) -> Mean:
    """Take the mean of items that come in clusters, such as the tokens of windows of a text.

    Items of a cluster are alike, so that the clusters count as the sample: the error is that of a
    ratio estimator, sqrt(k / (k - 1) * sum_i (sum_i - mean * count_i)^2) / n, undefined for fewer
    than two clusters.

    Args:
        sums: of the items of each cluster.
        counts: how many items each cluster holds, one or more.
    """
    clusters, items = len(sums), sum(counts)
    totals, sizes = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    value = float(totals.sum()) / items if items else math.nan
    if clusters < 2:
        return Mean(value, math.nan, items)
    squares = float(((totals - value * sizes) ** 2).sum())
    return Mean(value, math.sqrt(clusters / (clusters - 1) * squares) / items, items)
