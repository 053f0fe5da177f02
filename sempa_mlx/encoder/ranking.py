"""Rows of a store by their scores, best first."""

import numpy as np

Hits = list[tuple[int, float]]  # rows with their scores, best first
MARGIN = 1e-4  # more than float32 rounds a cosine by
CHUNK = 4096


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


def nearest_rows(vectors: np.ndarray, query: np.ndarray, cosines: np.ndarray, k: int) -> Hits:
    """Return the k rows nearest to a query, ties by row, with their cosines in float64.

    A BLAS product rounds equal rows unlike, by where they stand: rows that may belong to the first
    k are computed again, each alone.

    Args:
        vectors: (n, dim) of unit length.
        query: (dim,) of unit length.
        cosines: (n,) float32, `vectors @ query`, finite.
        k: >= 0.
    """
    count = min(k, len(cosines))
    if not count:
        return []
    last = np.partition(cosines, len(cosines) - count)[len(cosines) - count]
    candidates = np.flatnonzero(cosines >= last - MARGIN)
    exact = [
        (vectors[candidates[start : start + CHUNK]] * query.astype(np.float64)).sum(axis=1)
        for start in range(0, len(candidates), CHUNK)
    ]
    return [(int(candidates[at]), score) for at, score in best_rows(np.concatenate(exact), k)]
