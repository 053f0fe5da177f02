"""Fitting a sparse coder of any kind to the embeddings of unlabelled texts or of triplets."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np

from sempa_mlx.config import SparseConfig
from sempa_mlx.encoder.fit_dictionary import fit_dictionary
from sempa_mlx.encoder.fit_topk import fit_topk
from sempa_mlx.encoder.sparse import SparseCoder, check_k
from sempa_mlx.errors import DataError, Problem

LATENTS_A_DIMENSION = 4
GAIN_TEXTS = 2048
NO_SPREAD = 1e-6  # of the largest: less is rounding


def fit_coder(  # noqa: PLR0913 - a fit has this many parts
    vectors: np.ndarray,
    settings: SparseConfig,
    *,
    made_by: str,
    rankings: Sequence[tuple[int, ...]] = (),
    output_matrix: np.ndarray | None = None,
    seed: int = 0,
    on_epoch: Callable[[int], None] | None = None,
) -> SparseCoder:
    """Fit the coder that the settings name.

    Args:
        vectors: (n, dim) float32 of distinct texts, as they leave the model.
        settings: of the fit.
        made_by: `Encoder.vectors_key` of what made them.
        rankings: rows of an anchor and its candidates, best first, for `topk` to rank by codes.
        output_matrix: (vocabulary, dim) float32 of the model, for `lexical` alone.
        seed: of what is drawn.
        on_epoch: called with the epochs done.

    Raises:
        DataError: a vector is not finite, or there are too few.
        UsageError: k is larger than the number of latents.
    """
    _check(vectors)
    kind = settings.coder or "topk"
    hidden = settings.hidden or LATENTS_A_DIMENSION * vectors.shape[1]
    check_k(settings.k, hidden if output_matrix is None else len(output_matrix))
    centre = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.ones_like(centre) if kind == "lexical" else _spread(vectors - centre)
    seen = (vectors - centre) / scale
    bias, penalty = None, 0.0
    match kind:
        case "topk":
            found = fit_topk(seen, rankings, settings, hidden, seed, on_epoch)
            atoms, bias = found.atoms, found.bias
            centre += scale * found.shift
        case "fista":
            learned = fit_dictionary(seen, settings, hidden, seed, on_epoch)
            atoms, penalty = learned.atoms, learned.penalty
        case "lexical":
            assert output_matrix is not None, "a lexical coder is made of it"
            atoms = output_matrix
        case _:
            assert_never(kind)
    coder = SparseCoder(
        kind=kind,
        k=settings.k,
        vectors=made_by,
        num_texts=len(vectors),
        penalty=penalty,
        gain=1.0,
        centre=centre,
        scale=scale,
        atoms=np.ascontiguousarray(atoms),
        bias=np.zeros(len(atoms), np.float32) if bias is None else bias,
    )
    return coder if kind == "topk" else replace(coder, gain=_gain(coder, vectors))


def _check(vectors: np.ndarray) -> None:
    if len(vectors) < 2:
        raise DataError(Problem(f"{len(vectors)} texts are too few to fit a coder"))
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        what = f"{int((~finite).sum())} of {len(vectors)} embeddings hold NaN or infinity"
        raise DataError(Problem(what), state="nothing was fitted")


def _spread(centred: np.ndarray) -> np.ndarray:
    """Return the standard deviation of every dimension, (dim,) float32; 1 where nothing varies.

    A few dimensions of a language model's states vary far more than the rest; unscaled, they would
    take most of the latents. Token directions are for states as they are: `lexical` has no scale.
    """
    found: np.ndarray = np.sqrt((centred.astype(np.float64) ** 2).mean(axis=0))
    found[found <= NO_SPREAD * found.max(initial=0.0)] = 1.0
    spread: np.ndarray = found.astype(np.float32)
    return spread


def _gain(coder: SparseCoder, vectors: np.ndarray) -> float:
    """Return the factor that brings rebuilt vectors nearest to the vectors, by least squares."""
    sample = vectors[:GAIN_TEXTS]
    rebuilt = (coder.decode(coder.encode(sample)) - coder.centre).astype(np.float64)
    target = (sample - coder.centre).astype(np.float64)
    size = float((rebuilt**2).sum())
    return float((rebuilt * target).sum()) / size if size else 1.0
