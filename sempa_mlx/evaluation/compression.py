"""Ways to make embeddings small, side by side at the bytes that a vector takes.

Each way is scored by Spearman between people's scores and the cosines of what is left of the
vectors. Sparse coders see centred vectors, topk and fista standardized ones; either alone moves
scores of language models far, so dense vectors are there in all three forms.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sempa_mlx.encoder.postprocess import fit_post
from sempa_mlx.encoder.sparse import SparseCoder, code_cosines, shortened
from sempa_mlx.errors import DataError, Problem
from sempa_mlx.evaluation.code_statistics import CodeStatistics, code_statistics
from sempa_mlx.evaluation.quantised import (
    halved,
    halved_codes,
    int8_levels,
    int8_values,
    largest,
    signs,
)
from sempa_mlx.evaluation.stats import cosines, spearman

if TYPE_CHECKING:
    from scipy.sparse import csr_array

KS = (1, 2, 4, 8, 16, 32, 64, 128)
SHORT_INDICES = 1 << 16  # latents that 2 bytes tell apart


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """A named set of pairs: row numbers of both sides, (pairs,) int64, and people's scores."""

    name: str
    left: np.ndarray
    right: np.ndarray
    gold: np.ndarray


@dataclass(frozen=True, slots=True)
class CompressionScore:
    """What one way of making embeddings small costs and keeps.

    Attributes:
        system: the way.
        setting: values kept (k), or dimensions for `PCA` and `truncated`; None where there is no
            choice.
        num_bytes: of a vector, at most: numbers, and for sparse ones their indices.
        spearman: x 100, in [-100, 100], one for each set of pairs; NaN where undefined.
        statistics: of the codes, before they are rounded; of sparse coders only.
    """

    system: str
    setting: int | None
    num_bytes: int
    spearman: tuple[float, ...]
    statistics: CodeStatistics | None = None


@dataclass(frozen=True, slots=True)
class _Small:
    """What is left of all vectors, by one way: (n, dim) numbers or (n, hidden) codes."""

    system: str
    setting: int | None
    num_bytes: int
    kept: "np.ndarray | csr_array"
    statistics: CodeStatistics | None = None


def compare_compressions(
    vectors: np.ndarray,
    sets: Sequence[ScoredRows],
    *,
    ks: Sequence[int] = KS,
    fit: np.ndarray | None = None,
    coders: Mapping[str, SparseCoder] | None = None,
) -> list[CompressionScore]:
    """Score every way of making embeddings small, the ways in order of size within a kind.

    `dense` keeps 4 bytes a number and `dense fp16` 2. `truncated` keeps the first 2k dimensions in
    half precision and `PCA` the 2k of largest variance; `top k` the k numbers of largest magnitude;
    so all of these take the 4k bytes that a code of k values takes, with 2 bytes for an index and 2
    for a value (6k where the latents need indices of 4 bytes). `int8` takes a byte a number and
    `binary` a bit. `centred` ways take the mean off first, `standardized` ones also divide each
    dimension by its standard deviation (`--post standardize`). Settings that a way does not have
    are left out.

    Args:
        vectors: (n, dim) float32 as they leave the model.
        sets: pairs of rows with scores.
        ks: values a code, each >= 1.
        fit: (m, dim) float32 of other texts, m >= 2, that mean, deviations, PCA and the
            ranges of int8 are fitted to; without them the ways that need them are left out.
        coders: sparse coders by name.

    Raises:
        DataError: a vector holds NaN or infinity.
    """
    for each in (vectors, fit):
        if each is not None and not np.isfinite(each).all():
            raise DataError(Problem("an embedding holds NaN or infinity"))
    return [
        CompressionScore(
            *(small.system, small.setting, small.num_bytes),
            tuple(_score(small.kept, pairs) for pairs in sets),
            small.statistics,
        )
        for small in _all(vectors, sorted(set(ks)), fit, coders or {})
    ]


def _score(kept: "np.ndarray | csr_array", pairs: ScoredRows) -> float:
    one, other = kept[pairs.left], kept[pairs.right]
    found = cosines(one, other) if isinstance(one, np.ndarray) else code_cosines(one, other)
    return 100 * spearman(pairs.gold, found)


def _all(
    vectors: np.ndarray,
    ks: Sequence[int],
    fit: np.ndarray | None,
    coders: Mapping[str, SparseCoder],
) -> Iterator[_Small]:
    """Yield the ways one at a time, as each holds all vectors."""
    yield from _uncentred(vectors, ks)
    if fit is not None:
        yield from _fitted(vectors, ks, fit)
    for name, coder in coders.items():
        yield from _coded(name, coder, vectors, ks)


def _uncentred(vectors: np.ndarray, ks: Sequence[int]) -> Iterator[_Small]:
    dim = vectors.shape[1]
    yield _Small("dense", None, 4 * dim, vectors)
    yield _Small("dense fp16", None, 2 * dim, halved(vectors))
    for k in ks:
        if 2 * k < dim:
            yield _Small("truncated", 2 * k, 4 * k, halved(vectors[:, : 2 * k]))
    yield from _largest("top k", vectors, ks)


def _fitted(vectors: np.ndarray, ks: Sequence[int], fit: np.ndarray) -> Iterator[_Small]:
    dim = vectors.shape[1]
    mean = fit.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred, centred_fit = vectors - mean, fit - mean
    standardized = fit_post(fit, "standardize", 0, vectors="").apply(vectors)
    yield _Small("dense centred", None, 4 * dim, centred)
    yield _Small("dense standardized", None, 4 * dim, standardized)
    yield _Small("int8", None, dim, int8_levels(vectors, fit))
    yield _Small("int8 centred", None, dim, int8_values(centred, centred_fit))
    yield _Small("binary centred", None, -(-dim // 8), signs(centred))
    sizes = [2 * k for k in ks if 2 * k < min(dim, len(fit))]
    if sizes:
        projected = centred @ fit_post(fit, "abtt", sizes[-1], vectors="").basis.T
    for size in sizes:
        yield _Small("PCA", size, 2 * size, halved(projected[:, :size]))
    yield from _largest("top k centred", centred, ks)
    yield from _largest("top k standardized", standardized, ks)


def _largest(name: str, vectors: np.ndarray, ks: Sequence[int]) -> Iterator[_Small]:
    for k in ks:
        if k < vectors.shape[1]:
            yield _Small(name, k, 4 * k, halved(largest(vectors, k)))


def _coded(
    name: str, coder: SparseCoder, vectors: np.ndarray, ks: Sequence[int]
) -> Iterator[_Small]:
    possible = [k for k in ks if k <= coder.hidden]
    if not possible:
        return
    whole = coder.encode(vectors, max(possible))
    for k in possible:
        codes = shortened(whole, k)
        found = code_statistics(coder, vectors, codes)
        yield _Small(name, k, k * bytes_a_value(coder.hidden), halved_codes(codes), found)


def bytes_a_value(hidden: int) -> int:
    """Return what a value of a code takes: half precision, and an index of 2 or 4 bytes."""
    return 4 if hidden <= SHORT_INDICES else 6
