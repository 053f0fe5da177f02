"""Two maps of the same sentences, before and after, that can be compared by eye."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Maps:
    """Where sentences lie in a plane before and after training.

    Attributes:
        before, after: (n, 2) float64, centred, of mean squared distance 1 from the centre (0 if all
            points are one).
        shares: of the variance of the vectors, what the plane shows, before and after, in [0, 1].
    """

    before: np.ndarray
    after: np.ndarray
    shares: tuple[float, float]


def aligned_maps(before: np.ndarray, after: np.ndarray) -> Maps:
    """Project each set of vectors on its own first two principal axes; turn `after` onto `before`.

    One plane for both would show neither: training moves all vectors together, and the direction of
    that move takes an axis for itself. Turning (a rotation or reflection by Procrustes, Schönemann
    1966) changes no distance inside a map; both maps are scaled to the same spread.

    Args:
        before: (n, dim) real vectors, n >= 2.
        after: the same sentences, (n, dim).
    """
    first, first_share = _plane(before)
    second, second_share = _plane(after)
    left, _, right = np.linalg.svd(second.T @ first)
    return Maps(first, second @ (left @ right), (first_share, second_share))


def _plane(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Return coordinates on the first two principal axes, and their share of the variance."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    shown = min(2, len(sizes))
    # An axis has no direction of its own; its largest element is made positive.
    largest = np.abs(axes[:shown]).argmax(axis=1)
    signs = np.where(axes[np.arange(shown), largest] < 0, -1.0, 1.0)
    points[:, :shown] = left[:, :shown] * sizes[:shown] * signs
    total = float((sizes**2).sum())
    share = float((sizes[:shown] ** 2).sum()) / total if total > 0 else 0.0
    spread = np.sqrt((points**2).sum(axis=1).mean())
    return points / spread if spread > 1e-12 else points, share
