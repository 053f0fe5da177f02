"""Exact search over sparse codes: a query meets only the texts that share a latent with it."""

from typing import TYPE_CHECKING

import numpy as np

from sempa_mlx.encoder.ranking import Hits, best_rows
from sempa_mlx.encoder.sparse import code_lengths
from sempa_mlx.errors import UsageError

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class InvertedIndex:
    """For each latent the texts that have it, with their values at unit length.

    It holds as much as the codes once more, float64; a search adds one score a text.
    """

    def __init__(self, codes: "csr_array") -> None:
        """Index (n, latents) codes; values are finite and not below 0."""
        postings = _at_unit_length(codes).tocsc()
        self.count, self.latents = codes.shape
        self._ends = postings.indptr
        self._rows, self._values = postings.indices, postings.data
        self._is_empty = code_lengths(codes) == 0

    def search(self, queries: "csr_array", k: int) -> list[Hits]:
        """Return the k rows of the highest cosines with each query, ties by row.

        A code without values has cosine 0 with all others and comes after every other.

        Args:
            queries: (q, latents) codes by the same coder.
            k: rows of each query, >= 1; all if there are fewer.

        Raises:
            UsageError: the queries are codes of another coder, or k is below 1.
        """
        if queries.shape[1] != self.latents:
            what = f"queries of {queries.shape[1]} latents in an index of {self.latents}"
            raise UsageError(what)
        if k < 1:
            raise UsageError(f"k must be at least 1, not {k}")
        unit = _at_unit_length(queries)
        found = []
        for row in range(unit.shape[0]):
            start, end = unit.indptr[row : row + 2]
            scores = self._scores(unit.indices[start:end], unit.data[start:end])
            scores[self._is_empty] = -1.0  # below those that share no latent
            found.append([(at, max(score, 0.0)) for at, score in best_rows(scores, k)])
        return found

    def _scores(self, latents: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Add up the postings of a query's latents: (n,) float64."""
        scores = np.zeros(self.count)
        for latent, value in zip(latents, values, strict=True):
            part = slice(self._ends[latent], self._ends[latent + 1])
            scores[self._rows[part]] += value * self._values[part]  # a row has a latent once
        return scores


def _at_unit_length(codes: "csr_array") -> "csr_array":
    """Return codes at length 1, float64, indices in order; one without values stays so."""
    found = codes.astype(np.float64)
    found.sum_duplicates()
    lengths = code_lengths(found)
    found.data /= np.repeat(np.where(lengths > 0, lengths, 1.0), np.diff(found.indptr))
    return found
