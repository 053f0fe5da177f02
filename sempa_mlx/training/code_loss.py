"""Losses of sparse codes of embeddings, differentiable: what a coder and an adapter learn from.

    R_k + R_4k / 8 + R_aux / 32 + preference * L_pref

R is the share of variance that the rebuilt vectors leave unexplained; R_aux asks the latents that
have not fired lately to rebuild what the others missed; L_pref ranks the codes of an anchor's
candidates by their cosines. Source: CSR (arXiv 2503.01776), with R for its MSE, so that weights do
not depend on the scale of vectors.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from sempa_mlx.training.objectives import contrastive_nll

WIDE = 4  # times k, of the second reconstruction
WIDE_WEIGHT = 1 / 8
DEAD_WEIGHT = 1 / 32
TINY = 1e-12


class CoderWeights(NamedTuple):
    """Atoms (hidden, dim), bias of the latents (hidden,), and of the vectors (dim,); float32."""

    atoms: mx.array
    bias: mx.array
    shift: mx.array


def pre_activations(vectors: mx.array, weights: CoderWeights) -> mx.array:
    """Return latents before anything is cut off, (n, hidden), of (n, dim) vectors."""
    return (vectors - weights.shift) @ weights.atoms.T + weights.bias


def strongest(latents: mx.array, k: int) -> mx.array:
    """Keep the k largest values of each row where they are above 0, (n, hidden); 0 elsewhere."""
    positive = mx.maximum(latents, 0)
    if k >= latents.shape[1]:
        return positive
    least = mx.stop_gradient(mx.topk(positive, k, axis=1).min(axis=1, keepdims=True))
    return mx.where(positive >= least, positive, 0)


def rebuilt(codes: mx.array, weights: CoderWeights) -> mx.array:
    """Return (n, dim) vectors from (n, hidden) codes, by the same atoms."""
    return codes @ weights.atoms + weights.shift


def unexplained(vectors: mx.array, found: mx.array) -> mx.array:
    """Return the share of the vectors' variance that `found` leaves, a scalar >= 0."""
    variance = ((vectors - vectors.mean(axis=0)) ** 2).sum()
    return ((vectors - found) ** 2).sum() / mx.maximum(variance, TINY)


def code_loss(
    vectors: mx.array, weights: CoderWeights, k: int, dead: mx.array | None
) -> tuple[mx.array, mx.array]:
    """Return R_k + R_4k / 8 + R_aux / 32, and the codes.

    Args:
        vectors: (n, dim) float32, centred.
        weights: of the coder.
        k: values of a code.
        dead: (hidden,) bool, latents that have not fired lately; None: nothing is known of them.

    Returns:
        A scalar, and (n, hidden) float32 with k values a row at most.
    """
    latents = pre_activations(vectors, weights)
    codes = strongest(latents, k)
    found = rebuilt(codes, weights)
    loss = unexplained(vectors, found)
    wide = strongest(latents, min(WIDE * k, latents.shape[1]))
    loss = loss + WIDE_WEIGHT * unexplained(vectors, rebuilt(wide, weights))
    if dead is not None:
        missed = mx.stop_gradient(vectors - found)
        spare = strongest(mx.where(dead, latents, 0), max(1, latents.shape[1] // 4))
        aux = ((missed - spare @ weights.atoms) ** 2).sum() / mx.maximum((missed**2).sum(), TINY)
        loss = loss + DEAD_WEIGHT * mx.where(dead.any(), aux, 0.0)
    return loss, codes


def cosines(left: mx.array, right: mx.array) -> mx.array:
    """Return the cosine of every row of `left` with every row of `right`, (n, m); 0 for zeros."""
    return _units(left) @ _units(right).T


def _units(vectors: mx.array) -> mx.array:
    # The root of a sum of squares has no gradient at 0, where codes without values are.
    lengths = mx.sqrt(mx.maximum((vectors**2).sum(axis=1, keepdims=True), TINY))
    return vectors / lengths


def preference_nll(
    codes: mx.array,
    anchors: Sequence[int],
    candidates: Sequence[int],
    taken_out: mx.array,
    temperature: float,
    base: mx.array | None = None,
) -> mx.array:
    """Return how unlikely each anchor's best candidate is to come first, by cosines, in nats.

    Args:
        codes: (n, hidden), of distinct sentences.
        anchors: row of each anchor.
        candidates: rows of their candidates, K each, best first; those of other anchors count as
            negatives too.
        taken_out: (anchors, candidates) bool, pairs that are no negatives.
        temperature: > 0, divides cosines.
        base: (n, dim) embeddings of the untouched model as the coder sees them, centred and scaled,
            whose cosines are taken off first: then only what the codes changed counts, as DPO
            counts log-ratios.

    Returns:
        (anchors,) float32.
    """
    rows, columns = mx.array(list(anchors)), mx.array(list(candidates))
    similarities = cosines(codes[rows], codes[columns])
    if base is not None:
        similarities = similarities - mx.stop_gradient(cosines(base[rows], base[columns]))
    num_candidates = len(candidates) // len(anchors)
    return contrastive_nll(similarities / temperature, num_candidates, taken_out)
