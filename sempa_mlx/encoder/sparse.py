"""Sparse coders: a dense embedding in, a few weighted latents out, and back.

Three kinds share one shape, a matrix of atoms (one direction a latent) and a centre:

- `topk`: latents are ReLU(W x + b), the k strongest stay; W is learned and tied, so the same atoms
  rebuild the vector (CSR, arXiv 2503.01776).
- `fista`: non-negative latents that minimise 0.5 ||x - W'z||^2 + penalty ||z||_1 over a learned
  dictionary; the k strongest stay. The penalty shrinks them, which one gain undoes on the way back.
- `lexical`: log(1 + ReLU) of the logits that the model's own output matrix gives x, the k strongest
  stay; latents are tokens (PromptReps, arXiv 2404.18424). Nothing is learned but the centre and one
  gain for the way back.

x is the embedding as it leaves the model, moved by `centre` and divided by `scale`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from sempa_mlx.encoder.fista import nonnegative_codes
from sempa_mlx.errors import DataError, Problem, UsageError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Kind = Literal["topk", "fista", "lexical"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BLOCK_VALUES = 1 << 24  # latents of one block of vectors: 64 MiB


@dataclass(frozen=True, slots=True)
class SparseCoder:
    """A fitted coder of embeddings of one model and method.

    Attributes:
        kind: which of the three.
        k: values of a code unless told otherwise.
        vectors: what made the embeddings (`Encoder.vectors_key`): it codes no others.
        num_texts: distinct texts it was fitted to.
        penalty: weight of the L1 norm, for `fista`.
        gain: of the way back: undoes the shrinking of `fista`, finds the scale of `lexical`.
        centre: (dim,) float32, taken off an embedding first.
        scale: (dim,) float32, what its numbers are divided by then.
        atoms: (hidden, dim) float32, a latent a row.
        bias: (hidden,) float32, of the latents of `topk`.
    """

    kind: Kind
    k: int
    vectors: str
    num_texts: int
    penalty: float
    gain: float
    centre: np.ndarray = field(compare=False, repr=False)
    scale: np.ndarray = field(compare=False, repr=False)
    atoms: np.ndarray = field(compare=False, repr=False)
    bias: np.ndarray = field(compare=False, repr=False)

    @property
    def dim(self) -> int:
        """The length of an embedding."""
        return int(self.atoms.shape[1])

    @property
    def hidden(self) -> int:
        """The number of latents."""
        return int(self.atoms.shape[0])

    def encode(self, vectors: np.ndarray, k: int | None = None) -> "csr_array":
        """Turn embeddings into codes.

        Args:
            vectors: (n, dim) as they leave the model, neither cut nor of unit length.
            k: values of a code at most, 1 to `hidden`; by default the coder's own.

        Returns:
            (n, hidden) float32 in compressed rows, indices in order; every value is above 0.

        Raises:
            UsageError: there are not so many latents, or vectors of another length.
            DataError: a vector holds NaN or infinity.
        """
        from scipy.sparse import csr_array, vstack

        kept = self.k if k is None else k
        check_k(kept, self.hidden)
        self._check(vectors)
        parts = [_strongest(block, kept) for block in self._latents(vectors)]
        empty = csr_array((0, self.hidden), dtype=np.float32)
        return csr_array(vstack(parts, format="csr")) if parts else empty

    def decode(self, codes: "csr_array") -> np.ndarray:
        """Rebuild embeddings, (n, dim) float32, from (n, hidden) codes; the atoms are tied."""
        values = codes.copy()
        if self.kind == "lexical":
            values.data = np.expm1(values.data)
        values.data = np.float32(self.gain) * values.data
        rebuilt = values @ self.atoms * self.scale + self.centre
        return np.asarray(rebuilt, dtype=np.float32)

    def centred(self, vectors: np.ndarray) -> np.ndarray:
        """Return x, (n, dim) float32: embeddings as the atoms see them."""
        moved: np.ndarray = (vectors.astype(np.float32) - self.centre) / self.scale
        return moved

    def describe(self) -> dict[str, Any]:
        """Return what a file or a report says of this coder."""
        return {
            "kind": self.kind,
            "k": self.k,
            "hidden": self.hidden,
            "dim": self.dim,
            "vectors": self.vectors,
            "num_texts": self.num_texts,
            "penalty": self.penalty,
            "gain": self.gain,
        }

    def _latents(self, vectors: np.ndarray) -> Iterator[np.ndarray]:
        """Yield all latents of block after block of vectors, (rows, hidden) float32."""
        activate: dict[Kind, Callable[[np.ndarray], np.ndarray]] = {
            "topk": lambda x: x @ self.atoms.T + self.bias,
            "fista": lambda x: nonnegative_codes(x, self.atoms, self.penalty).codes,
            "lexical": lambda x: np.log1p(np.maximum(x @ self.atoms.T, 0)),
        }
        rows = max(1, BLOCK_VALUES // self.hidden)
        for start in range(0, len(vectors), rows):
            yield activate[self.kind](self.centred(vectors[start : start + rows]))

    def _check(self, vectors: np.ndarray) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            what = f"the coder takes vectors of {self.dim} numbers, not of shape {vectors.shape}"
            raise UsageError(Problem(what, fix="fit a coder to this model"))
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            rows = np.flatnonzero(~finite)
            what = f"{len(rows)} of {len(vectors)} embeddings hold NaN or infinity"
            raise DataError(Problem(what, evidence=f"the first is number {rows[0] + 1}"))


def check_k(k: int, hidden: int) -> None:
    """Refuse a number of values that a code cannot have.

    Raises:
        UsageError: k is not in 1 to `hidden`.
    """
    if not 1 <= k <= hidden:
        what = f"k must lie in 1 to {hidden}, the number of latents, not {k}"
        raise UsageError(Problem(what))


def _strongest(latents: np.ndarray, k: int) -> "csr_array":
    """Keep the k largest latents above 0 of each row."""
    from scipy.sparse import csr_array

    count, hidden = latents.shape
    if k < hidden:
        indices = np.sort(np.argpartition(latents, hidden - k, axis=1)[:, hidden - k :], axis=1)
    else:
        indices = np.broadcast_to(np.arange(hidden), latents.shape)
    values = np.take_along_axis(latents, indices, axis=1)
    stays = values > 0
    starts = np.concatenate([[0], np.cumsum(stays.sum(axis=1))]).astype(np.int32)
    found = (values[stays].astype(np.float32), indices[stays].astype(np.int32), starts)
    return csr_array(found, shape=(count, hidden))


def shortened(codes: "csr_array", k: int) -> "csr_array":
    """Keep the k largest values of each code: what `encode` gives for a smaller k.

    Args:
        codes: (n, hidden) of a coder of any kind.
        k: >= 1.
    """
    from scipy.sparse import csr_array

    ends = codes.indptr
    kept = []
    for start, end in pairwise(ends):
        order = np.argsort(-codes.data[start:end], kind="stable")[:k]
        kept.append(start + np.sort(order))
    rows = np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in kept])]).astype(np.int32)
    return csr_array((codes.data[rows], codes.indices[rows], starts), shape=codes.shape)


def code_cosines(left: "csr_array", right: "csr_array") -> np.ndarray:
    """Return the cosine of each row of `left` with the same row of `right`, (n,) float64.

    A code without values has cosine 0 with every other.
    """
    products = np.asarray(left.multiply(right).sum(axis=1), dtype=np.float64).ravel()
    lengths = code_lengths(left) * code_lengths(right)
    found: np.ndarray = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return found


def code_lengths(codes: "csr_array") -> np.ndarray:
    """Return the Euclidean length of each code, (n,) float64."""
    squares: np.ndarray = np.asarray((codes.astype(np.float64) ** 2).sum(axis=1)).ravel()
    found: np.ndarray = np.sqrt(squares)
    return found
