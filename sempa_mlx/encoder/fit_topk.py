"""Fitting the tied top-k coder to embeddings: minutes on a CPU, the model is not touched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from sempa_mlx.config import SparseConfig
from sempa_mlx.training.code_loss import (
    CoderWeights,
    code_loss,
    preference_nll,
)
from sempa_mlx.training.sentence_losses import same_sentences

ADAM_EPS = 6.25e-10  # CSR's
NOISE = 1e-2
OTHER_LENGTH = 0.3
DEAD_AFTER = 30  # steps without firing
ANNEALED_FROM, ANNEALED_UP_TO = 64, 8  # k starts at 64 where it ends at 8 or less (CSRv2)
ANNEALED_SHARE = 0.7  # of the steps, then k stays

Triplet = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Weights of a coder over centred vectors, and the loss of every epoch."""

    atoms: np.ndarray
    bias: np.ndarray
    shift: np.ndarray
    losses: tuple[float, ...]


def fit_topk(
    vectors: np.ndarray,
    rankings: Sequence[Triplet],
    settings: SparseConfig,
    hidden: int,
    seed: int,
    on_epoch: Callable[[int], None] | None = None,
) -> Fitted:
    """Learn atoms that rebuild vectors from their k strongest latents.

    Args:
        vectors: (n, dim) float32, centred and scaled.
        rankings: row numbers of an anchor and its candidates, best first, all of one length; with
            them codes of paraphrases are drawn together, without them codes only rebuild.
        settings: k, epochs, batch size, rate, preference weight and temperature.
        hidden: number of latents.
        seed: of the first atoms and of the order.
        on_epoch: called with the epochs done.
    """
    fit = _Fit(vectors, settings, hidden, seed)
    members: Sequence[Triplet] = rankings or [(row,) for row in range(len(vectors))]
    a_step = max(1, settings.batch_size // len(members[0]))
    num_steps = settings.epochs * -(-len(members) // a_step)
    losses, step = [], 0
    for epoch in range(settings.epochs):
        total = 0.0
        order = fit.draw.permutation(len(members))
        for start in range(0, len(order), a_step):
            batch = [members[index] for index in order[start : start + a_step]]
            total += len(batch) * fit.step(batch, annealed(settings.k, hidden, step, num_steps))
            step += 1
        losses.append(total / len(members))
        if on_epoch:
            on_epoch(epoch + 1)
    atoms, bias, shift = map(np.array, fit.weights)
    return Fitted(atoms, bias, shift, tuple(losses))


def annealed(k: int, hidden: int, step: int, num_steps: int) -> int:
    """Return the values of a code at a step: small k are approached from 64, linearly."""
    if k > ANNEALED_UP_TO:
        return k
    start = min(ANNEALED_FROM, hidden)
    done = min(1.0, step / max(1.0, ANNEALED_SHARE * num_steps))
    return round((1 - done) * start + done * k)


def first_weights(vectors: np.ndarray, hidden: int, draw: np.random.Generator) -> CoderWeights:
    """Start from the principal directions of centred vectors, each with its opposite.

    Then a code holds a vector's strongest principal components, and is rebuilt as well as any
    rotation allows. Starting from directions of random vectors (CSR's way) ended 3 points lower on
    STS-B dev. Latents beyond two a dimension start as such, at a length that leaves them few texts.
    """
    count, dim = vectors.shape
    _, axes = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors / count)
    strongest_first = axes.T[::-1][: -(-hidden // 2)]
    atoms = np.concatenate([strongest_first, -strongest_first])[:hidden]
    if hidden > len(atoms):
        chosen = draw.choice(count, size=hidden - len(atoms), replace=True)
        noise = draw.standard_normal((len(chosen), dim)) * NOISE  # no two atoms alike, none zero
        others = vectors[chosen] + noise
        others *= OTHER_LENGTH / np.linalg.norm(others, axis=1, keepdims=True)
        atoms = np.concatenate([atoms, others])
    return CoderWeights(mx.array(atoms.astype(np.float32)), mx.zeros(hidden), mx.zeros(dim))


class _Fit:
    """Weights, optimizer, and for how long each latent has not fired."""

    def __init__(self, vectors: np.ndarray, settings: SparseConfig, hidden: int, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.weights = first_weights(vectors, hidden, self.draw)
        self._vectors, self._settings = vectors, settings
        self._optimizer = optim.Adam(settings.learning_rate, eps=ADAM_EPS, bias_correction=True)
        self._optimizer.init(self.weights._asdict())
        self._idle = np.zeros(hidden, dtype=np.int64)

    def step(self, batch: Sequence[Triplet], k: int) -> float:
        """Take one step on a batch of rankings, codes of k values; return the loss."""
        rows = list(dict.fromkeys(row for ranking in batch for row in ranking))
        place = {row: index for index, row in enumerate(rows)}
        anchors = [place[ranking[0]] for ranking in batch]
        candidates = [place[row] for ranking in batch for row in ranking[1:]]
        seen, dead = mx.array(self._vectors[rows]), mx.array(self._idle > DEAD_AFTER)

        def loss_of(tree: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
            loss, codes = code_loss(seen, CoderWeights(**tree), k, dead)
            if candidates and self._settings.preference:
                loss = loss + self._ranked(codes, anchors, candidates, seen)
            return loss, (codes > 0).any(axis=0)

        weights = self.weights._asdict()
        (loss, fires), gradients = mx.value_and_grad(loss_of)(weights)
        weights = self._optimizer.apply_gradients(gradients, weights)
        mx.eval(weights, self._optimizer.state, loss, fires)
        self._idle = np.where(np.array(fires), 0, self._idle + 1)
        self.weights = CoderWeights(**weights)
        return float(loss)

    def _ranked(
        self, codes: mx.array, anchors: list[int], candidates: list[int], seen: mx.array
    ) -> mx.array:
        settings = self._settings
        num = len(candidates) // len(anchors)
        losses = preference_nll(
            codes,
            anchors,
            candidates,
            mx.array(same_sentences(anchors, candidates, num)),
            settings.temperature,
            seen if settings.adjusted else None,
        )
        return settings.preference * losses.mean()
