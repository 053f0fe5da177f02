"""Rows of a store by their scores, best first."""

import numpy as np

Hits = list[tuple[int, float]]  # rows with their scores, best first


def best_rows(scores: np.ndarray, k: int) -> Hits:
    """Return the k rows of the highest scores, ties by row; all if there are fewer.

    Args:
        scores: (n,), finite.
        k: >= 0.
    """
    count = min(k, len(scores))
    if not count:
        return []
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= last)  # in order of row, more than `count` if some tie
    rows = candidates[np.argsort(-scores[candidates], kind="stable")[:count]]
    return [(int(row), float(scores[row])) for row in rows]
