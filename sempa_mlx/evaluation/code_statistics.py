"""How well sparse codes rebuild embeddings, and how evenly they use their latents."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sempa_mlx.encoder.sparse import SparseCoder

if TYPE_CHECKING:
    from scipy.sparse import csr_array

BLOCK = 4096  # vectors rebuilt at a time


@dataclass(frozen=True, slots=True)
class CodeStatistics:
    """Measures of the codes of one set of embeddings, NaN where undefined.

    Attributes:
        unexplained: sum of ||x - x^||^2 over the sum of ||x - mean||^2, x^ rebuilt from the code
            and the mean that of the set, >= 0. 0 is perfect, 1 no better than the mean (the
            reconstruction that CSR, arXiv 2503.01776, minimises; there as an MSE). NaN if the
            embeddings do not vary.
        dead_share: latents that fire for no embedding of the set, over all latents, in [0, 1]. A
            set of n codes of k values fires n k latents at most. NaN without embeddings.
        usage_entropy: entropy of the shares that latents have in all firing, in nats, in
            [0, ln hidden]; a latent fires where its value is above 0. NaN if none fires.
        effective_latents: exp of the entropy, in [1, hidden]: as many latents in even use would
            have it (Hill 1973, order 1).
        mean_values: values above 0 of a code, in [0, k]. NaN without embeddings.
    """

    unexplained: float
    dead_share: float
    usage_entropy: float
    effective_latents: float
    mean_values: float


def code_statistics(coder: SparseCoder, vectors: np.ndarray, codes: "csr_array") -> CodeStatistics:
    """Measure codes against the embeddings they stand for.

    Args:
        coder: made the codes.
        vectors: (n, dim) as they leave the model.
        codes: (n, hidden), of any number of values.

    Raises:
        ValueError: the rows differ in number.
    """
    if len(vectors) != codes.shape[0]:
        raise ValueError(f"{len(vectors)} vectors, but {codes.shape[0]} codes")
    uses = np.bincount(codes.indices[codes.data > 0], minlength=coder.hidden)
    entropy = _entropy(uses)
    count = len(vectors)
    return CodeStatistics(
        unexplained=_unexplained(coder, vectors, codes),
        dead_share=float((uses == 0).mean()) if count else math.nan,
        usage_entropy=entropy,
        effective_latents=math.exp(entropy),
        mean_values=float(uses.sum()) / count if count else math.nan,
    )


def _entropy(uses: np.ndarray) -> float:
    fired = uses[uses > 0]
    if not len(fired):
        return math.nan
    shares = fired / fired.sum()
    return max(0.0, -float((shares * np.log(shares)).sum()))


def _unexplained(coder: SparseCoder, vectors: np.ndarray, codes: "csr_array") -> float:
    if not len(vectors):
        return math.nan
    mean = vectors.mean(axis=0, dtype=np.float64)
    missed = total = 0.0
    for start in range(0, len(vectors), BLOCK):
        rows = slice(start, start + BLOCK)
        block = vectors[rows].astype(np.float64)
        missed += float(((block - coder.decode(codes[rows])) ** 2).sum())
        total += float(((block - mean) ** 2).sum())
    return missed / total if total > 0 else math.nan
