"""Finding the sentence that another entails: how often, and how fast.

A search is any function of a query's number that returns the numbers of candidates, best first;
nothing here depends on how it works.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sempa_mlx.data.records import PreferenceRecord
from sempa_mlx.encoder.inverted_index import InvertedIndex
from sempa_mlx.encoder.postprocess import at_unit_length

if TYPE_CHECKING:
    from scipy.sparse import csr_array

AT = 10

Search = Callable[[int], np.ndarray]


@dataclass(frozen=True, slots=True)
class RetrievalTask:
    """Distinct queries, distinct candidates, and for each query the candidates that it seeks."""

    queries: tuple[str, ...]
    candidates: tuple[str, ...]
    sought: tuple[frozenset[int], ...]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """How a search does.

    Attributes:
        num_queries: queries asked.
        num_candidates: sentences searched.
        recall: mean over queries of the share of sought candidates among the first `at`, in [0, 1].
            NaN without queries.
        standard_error: of the mean, from the spread over queries. NaN for fewer than two.
        seconds: median time of a query, one asked at a time. NaN without queries.
    """

    num_queries: int
    num_candidates: int
    recall: float
    standard_error: float
    seconds: float


def retrieval_task(records: Sequence[PreferenceRecord]) -> RetrievalTask:
    """Ask for the best candidate of each anchor, among all candidates of all rows.

    The others are near misses: they speak of the same scene. An anchor that several rows have
    seeks the best of each.
    """
    candidates = dict.fromkeys(text for record in records for text in record.candidates)
    rows = {text: row for row, text in enumerate(candidates)}
    sought: dict[str, set[int]] = {}
    for record in records:
        sought.setdefault(record.anchor, set()).add(rows[record.candidates[0]])
    return RetrievalTask(tuple(sought), tuple(rows), tuple(map(frozenset, sought.values())))


def measure_retrieval(
    search: Search, sought: Sequence[Collection[int]], num_candidates: int, *, at: int = AT
) -> Retrieval:
    """Ask every query once, and time it.

    Args:
        search: takes a query's number, 0 to len(sought) - 1.
        sought: candidates of each query, one at least.
        num_candidates: how many are searched.
        at: as many results count.
    """
    found, seconds = [], []
    for query in range(len(sought)):
        started = time.perf_counter()
        results = search(query)
        seconds.append(time.perf_counter() - started)
        found.append(results)
    recalls = recalls_at(found, sought, at)
    count = len(recalls)
    return Retrieval(
        num_queries=count,
        num_candidates=num_candidates,
        recall=float(recalls.mean()) if count else math.nan,
        standard_error=float(recalls.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan,
        seconds=float(np.median(seconds)) if count else math.nan,
    )


def recalls_at(
    found: Sequence[np.ndarray], sought: Sequence[Collection[int]], at: int
) -> np.ndarray:
    """Return for each query the share of its sought candidates among the first `at` found.

    Returns:
        (queries,) float64 in [0, 1].

    Raises:
        ValueError: the sides differ in length, or a query seeks nothing.
    """
    shares = [
        len(set(results[:at].tolist()) & set(wanted)) / len(wanted) if wanted else math.nan
        for results, wanted in zip(found, sought, strict=True)
    ]
    if any(map(math.isnan, shares)):
        raise ValueError("a query seeks nothing")
    return np.array(shares, dtype=np.float64)


def dense_search(queries: np.ndarray, candidates: np.ndarray, at: int = AT) -> Search:
    """Search by cosine, exactly: one product of all candidates with the query.

    Args:
        queries: (queries, dim), of any length.
        candidates: (candidates, dim).
        at: results of a search, fewer if there are not so many candidates.
    """
    asked = at_unit_length(queries.astype(np.float32))
    kept = np.ascontiguousarray(at_unit_length(candidates.astype(np.float32)))
    return lambda query: _best(kept @ asked[query], at)


def code_search(queries: "csr_array", candidates: "csr_array", at: int = AT) -> Search:
    """Search by cosine of codes, exactly: only lists of the query's latents are read.

    Candidates that share no latent with the query are not found.

    Args:
        queries: (queries, hidden).
        candidates: (candidates, hidden).
        at: results of a search at most.
    """
    index = InvertedIndex(candidates)

    def search(query: int) -> np.ndarray:
        (hits,) = index.search(queries[query : query + 1], at)
        return np.array([row for row, score in hits if score > 0], dtype=np.int64)

    return search


def _best(scores: np.ndarray, at: int) -> np.ndarray:
    """Return the numbers of the `at` largest scores, largest first."""
    count = len(scores)
    first = max(0, count - at)
    best = np.argpartition(scores, first)[first:] if first else np.arange(count)
    found: np.ndarray = best[np.argsort(-scores[best], kind="stable")]
    return found
