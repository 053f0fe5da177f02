"""Geometry of embeddings: how close paraphrases lie, and how evenly vectors fill the space.

Every measure is of directions: a vector counts by its unit vector u, as for cosine similarity, so
scaling vectors changes nothing. None of them is a goal: whitening makes them perfect and teaches
nothing. Read them beside a task's score.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 1024  # vectors in one tile of all pairs: 8 MiB of cosines
SAME = 1e-12  # mean squared distance from the mean that rounding to float32 explains


@dataclass(frozen=True, slots=True)
class Geometry:
    """Measures of one set of embeddings, NaN where undefined.

    Attributes:
        num_vectors: vectors measured; zero vectors have no direction and are not among them.
        num_zero: zero vectors left out.
        num_positives: positive pairs measured; those with a zero vector are not among them.
        dim: length of a vector.
        alignment: mean of ||u - v||^2 over positive pairs, in [0, 4], lower is closer (Wang & Isola
            2020, arXiv 2005.10242, alpha 2). NaN without positives.
        uniformity: log of the mean of exp(-2 ||u - v||^2) over all pairs of different vectors, in
            [-8, 0], lower is more even (Wang & Isola, t 2). 0 if all are equal, about -4 if they
            are spread over a sphere of high dimension. NaN for fewer than two vectors.
        average_cosine: mean cosine over all pairs of different vectors. NaN for fewer than two.
        partition_isotropy: min Z(a) / max Z(a) with Z(a) = sum of exp(a.u), a going over plus and
            minus each eigenvector of the sum of u u^T, in [exp(-2), 1], 1 is isotropic (Mu &
            Viswanath 2018, arXiv 1702.01417, on unit vectors). NaN without vectors. Equal
            eigenvalues leave the choice of eigenvectors open, and so the value.
        iso_score: ((tr C)^2 / tr(C^2) - 1) / (dim - 1) with C the covariance of the unit vectors,
            in [0, 1], 1 where all directions vary equally; blind to the mean (Rudman et al. 2022,
            arXiv 2108.07344; their isotropy defect in closed form). NaN if vectors do not vary.
        effective_rank: exp of the entropy of the shares that the eigenvalues of C have in their
            sum, in [1, dim] (Roy & Vetterli 2007, of C). NaN if vectors do not vary.
    """

    num_vectors: int
    num_zero: int
    num_positives: int
    dim: int
    alignment: float
    uniformity: float
    average_cosine: float
    partition_isotropy: float
    iso_score: float
    effective_rank: float


def measure_geometry(vectors: np.ndarray, positives: np.ndarray | None = None) -> Geometry:
    """Measure a set of embeddings, exactly, in memory that grows with their number only linearly.

    Args:
        vectors: (n, dim) real numbers, of any length.
        positives: (pairs, 2) row numbers of vectors that mean the same.

    Raises:
        ValueError: `vectors` is no such array or not finite, or `positives` names other rows.
    """
    _check(vectors, positives)
    has_direction: np.ndarray = (vectors != 0).any(axis=1)
    kept = vectors if has_direction.all() else vectors[has_direction]
    pairs = np.empty((0, 2), dtype=np.int64) if positives is None else positives
    pairs = pairs[has_direction[pairs].all(axis=1)]
    covariance = _covariance(kept)
    return Geometry(
        num_vectors=len(kept),
        num_zero=len(vectors) - len(kept),
        num_positives=len(pairs),
        dim=vectors.shape[1],
        alignment=_alignment(vectors, pairs),
        uniformity=_uniformity(kept),
        average_cosine=_average_cosine(kept),
        partition_isotropy=_partition_isotropy(kept),
        iso_score=_iso_score(covariance),
        effective_rank=_effective_rank(covariance),
    )


def _check(vectors: np.ndarray, positives: np.ndarray | None) -> None:
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise ValueError(f"vectors must be (n, dim), not {vectors.shape}")
    if vectors.dtype.kind not in "fiu":
        raise ValueError(f"vectors must be real numbers, not {vectors.dtype}")
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise ValueError(f"vector {row} holds NaN or infinity")
    if positives is None:
        return
    if positives.ndim != 2 or positives.shape[1] != 2 or positives.dtype.kind not in "iu":
        raise ValueError(
            f"positives must be (pairs, 2) integers, not {positives.shape} of {positives.dtype}"
        )
    if positives.size and not 0 <= positives.min() <= positives.max() < len(vectors):
        raise ValueError(f"positives name rows outside 0 to {len(vectors) - 1}")


def _directions(vectors: np.ndarray) -> np.ndarray:
    """Return non-zero vectors at unit length, in float64."""
    # Divided by the largest element first: squares of large or small ones leave float64's range.
    scaled = vectors.astype(np.float64)
    scaled /= np.abs(scaled).max(axis=1, keepdims=True)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled


def _blocks(vectors: np.ndarray, start: int = 0) -> Iterator[np.ndarray]:
    for first in range(start, len(vectors), BLOCK):
        yield _directions(vectors[first : first + BLOCK])


def _alignment(vectors: np.ndarray, pairs: np.ndarray) -> float:
    total = 0.0
    for start in range(0, len(pairs), BLOCK):
        left, right = pairs[start : start + BLOCK].T
        total += float(((_directions(vectors[left]) - _directions(vectors[right])) ** 2).sum())
    return total / len(pairs) if len(pairs) else math.nan


def _uniformity(vectors: np.ndarray) -> float:
    count = len(vectors)
    if count < 2:
        return math.nan
    total = 0.0
    for index, rows in enumerate(_blocks(vectors)):
        for offset, others in enumerate(_blocks(vectors, index * BLOCK)):
            kernel = rows @ others.T
            kernel -= 1  # ||u - v||^2 = 2 - 2 u.v
            kernel *= 4
            np.exp(kernel, out=kernel)
            # Tiles off the diagonal stand for their mirror images as well.
            total += float(2 * kernel.sum() if offset else kernel.sum() - np.trace(kernel))
    return math.log(total / (count * (count - 1)))


def _average_cosine(vectors: np.ndarray) -> float:
    count = len(vectors)
    if count < 2:
        return math.nan
    total = sum(block.sum(axis=0) for block in _blocks(vectors))
    return float((total @ total - count) / (count * (count - 1)))


def _partition_isotropy(vectors: np.ndarray) -> float:
    if not len(vectors):
        return math.nan
    _, axes = np.linalg.eigh(sum(block.T @ block for block in _blocks(vectors)))
    partition = np.zeros((2, axes.shape[1]))
    for block in _blocks(vectors):
        along = block @ axes
        partition += np.exp(along).sum(axis=0), np.exp(-along).sum(axis=0)
    return float(partition.min() / partition.max())


def _covariance(vectors: np.ndarray) -> np.ndarray | None:
    """Return the covariance of the directions, (dim, dim), or None if they do not vary."""
    if len(vectors) < 2:
        return None
    mean = sum(block.sum(axis=0) for block in _blocks(vectors)) / len(vectors)
    centred = (block - mean for block in _blocks(vectors))
    covariance: np.ndarray = sum(block.T @ block for block in centred) / len(vectors)
    return covariance if np.trace(covariance) > SAME else None


def _iso_score(covariance: np.ndarray | None) -> float:
    """Return (participation ratio - 1) / (dim - 1).

    With v the variances along the principal axes, scaled to length sqrt(dim), the isotropy defect
    is d^2 = ||v - 1||^2 / (2 (dim - sqrt dim)) = (dim - sum v) / (dim - sqrt dim), so Rudman's
    phi = (dim - d^2 (dim - sqrt dim))^2 / dim^2 = (sum v)^2 / dim^2: the participation ratio / dim.
    """
    if covariance is None or len(covariance) < 2:
        return math.nan
    participation = np.trace(covariance) ** 2 / (covariance**2).sum()
    return float((participation - 1) / (len(covariance) - 1))


def _effective_rank(covariance: np.ndarray | None) -> float:
    if covariance is None:
        return math.nan
    variances = np.linalg.eigvalsh(covariance).clip(min=0)
    shares = variances[variances > 0] / variances.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
