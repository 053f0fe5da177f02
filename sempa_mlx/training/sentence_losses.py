"""Losses of a batch's embeddings: nearer its own paraphrase, spread evenly, coded well."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from sempa_mlx.config import ObjectiveConfig, SparseConfig
from sempa_mlx.training.code_loss import CoderWeights, code_loss, cosines, preference_nll
from sempa_mlx.training.objectives import contrastive_nll

SHARPNESS = 2.0  # Wang & Isola's t


@dataclass(frozen=True, slots=True, eq=False)
class SentenceBatch:
    """Embeddings of a batch's distinct sentences, and which of them belong together.

    Attributes:
        embeddings: (sentences, dim) float32, of any length.
        base: the same under the untouched base, if a loss asks for it.
        anchors: row of each anchor.
        candidates: rows of the anchors' candidates, K each, best first.
    """

    embeddings: mx.array
    base: mx.array | None
    anchors: list[int]
    candidates: list[int]

    @property
    def num_candidates(self) -> int:
        """K."""
        return len(self.candidates) // len(self.anchors)

    @property
    def taken_out(self) -> mx.array:
        """Pairs that are no negatives, (anchors, candidates) bool."""
        return mx.array(same_sentences(self.anchors, self.candidates, self.num_candidates))


SentenceLoss = Callable[[SentenceBatch], mx.array]
Coder = Callable[[mx.array], tuple[mx.array, CoderWeights]]


def contrastive_loss(settings: ObjectiveConfig) -> SentenceLoss:
    """Return the mean over anchors of how unlikely their own best candidate is to come first.

    Scores are cosines over `temperature`, less the base's if `adjusted`; in nats.
    """

    def loss(batch: SentenceBatch) -> mx.array:
        rows, columns = mx.array(batch.anchors), mx.array(batch.candidates)
        similarities = cosines(batch.embeddings[rows], batch.embeddings[columns])
        if settings.adjusted:
            assert batch.base is not None, "asked for by the term"
            similarities = similarities - cosines(batch.base[rows], batch.base[columns])
        scores = similarities / settings.temperature
        return contrastive_nll(scores, batch.num_candidates, batch.taken_out).mean()

    return loss


def uniformity_loss(batch: SentenceBatch) -> mx.array:
    """Return the log of the mean of exp(-2 ||u - v||^2) over pairs of different sentences.

    In [-8, 0]: 0 where all embeddings point the same way. Source: Wang & Isola 2020 (arXiv
    2005.10242), equation 5; they take it over the batch as well.
    """
    count = len(batch.embeddings)
    if count < 2:
        return mx.zeros(())
    kernel = 2 * SHARPNESS * (cosines(batch.embeddings, batch.embeddings) - 1)
    others = mx.where(mx.eye(count) == 1, -mx.inf, kernel)
    return mx.logsumexp(others) - float(np.log(count * (count - 1)))


def sparse_loss(settings: SparseConfig, coder: Coder) -> SentenceLoss:
    """Return the loss of a sparse coder on the batch, its preference term included.

    Args:
        settings: k, preference weight, temperature, and whether cosines count against the base's;
            with `detach` no gradient reaches the embeddings.
        coder: centres and scales embeddings, and gives its weights as they are now.

    The loss for latents that have not fired lately is left out: batches of an adapter are too small
    to tell.
    """

    def loss(batch: SentenceBatch) -> mx.array:
        vectors = mx.stop_gradient(batch.embeddings) if settings.detach else batch.embeddings
        seen, weights = coder(vectors)
        total, codes = code_loss(seen, weights, settings.k, None)
        if settings.preference:
            ranked = preference_nll(
                codes,
                batch.anchors,
                batch.candidates,
                batch.taken_out,
                settings.temperature,
                coder(batch.base)[0] if settings.adjusted and batch.base is not None else None,
            )
            total = total + settings.preference * ranked.mean()
        return total

    return loss


def same_sentences(
    anchors: Sequence[int], candidates: Sequence[int], num_candidates: int
) -> np.ndarray:
    """Tell which candidates are an anchor itself or its own best candidate: no negatives.

    Returns (anchors, candidates) bool; sentences are given by numbers.
    """
    left = np.array(anchors)[:, None]
    best = np.array(candidates)[::num_candidates][:, None]
    right = np.array(candidates)[None, :]
    same: np.ndarray = (right == left) | (right == best)
    return same
