"""From an encoder to its sparse coder: embed texts once, fit, and remember what fires a latent."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sempa_mlx.config import SparseConfig
from sempa_mlx.data.rankings import RankedSentences
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.fit_coder import fit_coder
from sempa_mlx.encoder.sparse import SparseCoder
from sempa_mlx.encoder.vector_cache import raw_vectors
from sempa_mlx.model.head import output_matrix

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NUM_EXAMPLES = 5  # of a latent


@dataclass(frozen=True, slots=True)
class FittedCoder:
    """A coder, the texts that fire each latent most, and how it does on what it was fitted to.

    `unexplained` is the share of variance that rebuilt vectors leave; `dead` the share of latents
    that no text fires; `num_values` the mean values of a code.
    """

    coder: SparseCoder
    examples: dict[int, tuple[str, ...]]
    unexplained: float
    dead: float
    num_values: float


def fit_coder_after(  # noqa: PLR0913 - a fit has this many parts
    encoder: Encoder,
    sentences: RankedSentences,
    settings: SparseConfig,
    *,
    folder: Path,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> FittedCoder:
    """Fit a sparse coder to an encoder's embeddings of some sentences.

    Args:
        encoder: its map, cut and unit length are left out: coders see what leaves the model.
        sentences: distinct texts, with rankings if they are from preference rows.
        settings: kind of coder, and how to fit it.
        folder: where embeddings are kept between fits.
        seed: of what is drawn.
        on_progress: called with the number of texts embedded by each batch.
        on_epoch: called with the epochs done.

    Raises:
        DataError: there are too few texts, or an embedding holds NaN or infinity.
        UsageError: k is larger than the number of latents.
    """
    vectors = raw_vectors(encoder, sentences.texts, folder=folder, on_progress=on_progress)
    lexical = settings.coder == "lexical"
    coder = fit_coder(
        vectors,
        settings,
        made_by=encoder.vectors_key,
        rankings=sentences.rankings,
        output_matrix=np.array(output_matrix(encoder.loaded.model)) if lexical else None,
        seed=seed,
        on_epoch=on_epoch,
    )
    codes = coder.encode(vectors)
    errors = (vectors - coder.decode(codes)).astype(np.float64)
    variance = ((vectors - vectors.mean(axis=0, dtype=np.float64)) ** 2).sum()
    fired = len(np.unique(codes.indices))
    return FittedCoder(
        coder,
        strongest_texts(codes, sentences.texts, NUM_EXAMPLES),
        float((errors**2).sum() / variance) if variance else float("nan"),
        1 - fired / coder.hidden,
        codes.nnz / len(vectors),
    )


def strongest_texts(
    codes: "csr_array", texts: tuple[str, ...], count: int
) -> dict[int, tuple[str, ...]]:
    """Return for every latent that fires the `count` texts that fire it most, strongest first."""
    columns = codes.tocsc()
    found = {}
    for latent in np.flatnonzero(np.diff(columns.indptr)):
        part = slice(columns.indptr[latent], columns.indptr[latent + 1])
        order = np.argsort(-columns.data[part], kind="stable")[:count]
        found[int(latent)] = tuple(texts[row] for row in columns.indices[part][order])
    return found
