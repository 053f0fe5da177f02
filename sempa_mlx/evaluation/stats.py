"""Statistics over scores, on scipy. No mlx here."""

import numpy as np


def spearman(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Return Spearman's rank correlation, ties by average rank, in [-1, 1].

    NaN where it is undefined: fewer than two pairs, or a side that is constant.

    Raises:
        ValueError: the sides differ in length.
    """
    from scipy.stats import rankdata  # costs half a second to import

    if gold.shape != predicted.shape:
        raise ValueError(f"shapes differ: {gold.shape} and {predicted.shape}")
    if len(gold) < 2:
        return float("nan")
    left, right = rankdata(gold), rankdata(predicted)
    left -= left.mean()
    right -= right.mean()
    norm = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / norm) if norm > 0 else float("nan")


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return row-wise cosines of two (n, dim) arrays as (n,) float64; 0 where a row is zero."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    dots = np.einsum("ij,ij->i", left, right)
    found: np.ndarray = np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)
    return found
