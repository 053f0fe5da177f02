"""The embedding term: an anchor's own sentence must be nearer than every other one.

The scores are cosines of embeddings over a temperature; candidates of other anchors in the batch
are negatives, and so are an anchor's own later candidates. Every distinct sentence of the batch is
embedded once, in forward passes of a fixed size; the gradient of the loss to the embeddings is
found first and carried through each forward pass afterwards (gradient caching, arXiv 2101.06983):
exact, with memory that does not grow with the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx.config import ObjectiveConfig
from sempa_mlx.data.batching import batches_by_length
from sempa_mlx.model.head import hidden_size
from sempa_mlx.model.lora import dialled
from sempa_mlx.training.contribution import Contribution
from sempa_mlx.training.objectives import contrastive_nll
from sempa_mlx.world import World

Sentence = tuple[int, ...]
Embed = Callable[[Sequence[Sentence]], mx.array]


@dataclass(frozen=True, slots=True)
class SentenceRow:
    """An anchor and its K candidates, best first, each as the tokens of its embedding prompt."""

    anchor: Sentence
    candidates: tuple[Sentence, ...]


class EmbeddingTerm:
    """Pulls each anchor to its best candidate and away from all others."""

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[SentenceRow],
        embed: Embed,
        settings: ObjectiveConfig,
        micro_batch_tokens: int,
    ) -> None:
        """Keep what a step needs.

        Args:
            model: the model whose adapter is trained.
            rows: one row for each preference row.
            embed: turns token rows into (rows, hidden size) float32 embeddings under the adapter as
                it is dialled, with gradients; cosines are taken here.
            settings: weight, temperature and whether cosines count against the base's.
            micro_batch_tokens: bound of one forward pass.
        """
        self._model, self._rows, self._embed = model, rows, embed
        self._settings = settings
        self._micro_batch_tokens = micro_batch_tokens
        self._pulled_grad = nn.value_and_grad(model, self._pulled)
        self._whole_grad = nn.value_and_grad(
            model, lambda sentences, base, rows: self._loss(embed(sentences), base, rows, sentences)
        )
        self._base: dict[Sentence, np.ndarray] = {}

    def contribution(self, batch: Sequence[int], world: World, seed: int) -> Contribution:
        """Return loss and gradients of the whole batch through this process's sentences.

        The loss itself is counted by the first process alone.
        """
        rows = [self._rows[index] for index in batch]
        sentences = list(dict.fromkeys(s for row in rows for s in (row.anchor, *row.candidates)))
        own = world.share(range(len(sentences)))
        groups = batches_by_length(
            own, lambda index: len(sentences[index]), self._micro_batch_tokens
        )
        base = self._base_embeddings(sentences) if self._settings.adjusted else None
        if len(groups) == 1 and world.size == 1:
            mx.random.seed(world.seed(seed, 0))
            return self._at_once(sentences, base, rows)
        embeddings = self._embed_all(sentences, groups, world, seed)
        loss, pulls = mx.value_and_grad(self._loss)(embeddings, base, rows, sentences)
        found = Contribution(loss=float(loss) if world.rank == 0 else 0.0)
        for place, group in enumerate(groups):
            mx.random.seed(world.seed(seed, place))  # the masks of the first pass
            members = [sentences[index] for index in group]
            _, gradients = self._pulled_grad(members, pulls[mx.array(group)])
            found.add(gradients)
            found.tokens += sum(map(len, members))
        return found

    def largest_pass(self, batches: Sequence[Sequence[int]]) -> list[int]:
        """Return rows that fill the largest forward pass over these batches, the longest last."""

        def tokens(index: int) -> int:
            row = self._rows[index]
            return sum(map(len, (row.anchor, *row.candidates)))

        heaviest = max(batches, key=lambda batch: sum(map(tokens, batch)), default=[])
        room, rows = self._micro_batch_tokens, []
        for index in sorted(heaviest, key=tokens, reverse=True):
            room -= tokens(index)
            if room < 0:
                break
            rows.append(index)
        return rows[::-1]

    def _at_once(
        self,
        sentences: Sequence[Sentence],
        base: mx.array | None,
        rows: Sequence[SentenceRow],
    ) -> Contribution:
        """Do the same in one forward pass, where all sentences fit it."""
        loss, gradients = self._whole_grad(sentences, base, rows)
        found = Contribution(loss=float(loss), tokens=sum(map(len, sentences)))
        found.add(gradients)
        return found

    def _embed_all(
        self, sentences: Sequence[Sentence], groups: list[list[int]], world: World, seed: int
    ) -> mx.array:
        """Return the embeddings of all sentences, (sentences, dim), without a graph."""
        vectors = np.zeros((len(sentences), hidden_size(self._model)), dtype=np.float32)
        for place, group in enumerate(groups):
            mx.random.seed(world.seed(seed, place))
            vectors[group] = np.array(self._embed([sentences[index] for index in group]))
        total: mx.array = world.total(mx.array(vectors))
        return total

    def _base_embeddings(self, sentences: Sequence[Sentence]) -> mx.array:
        """Return what the untouched base gives; each sentence is embedded once a run."""
        missing = [sentence for sentence in sentences if sentence not in self._base]
        with dialled(self._model, 0.0):
            for members in batches_by_length(missing, len, self._micro_batch_tokens):
                self._base.update(zip(members, np.array(self._embed(members)), strict=True))
        return mx.array(np.stack([self._base[sentence] for sentence in sentences]))

    def _pulled(self, sentences: Sequence[Sentence], pulls: mx.array) -> mx.array:
        """Return a value whose gradient is that of the batch's loss through these sentences."""
        return (self._embed(sentences) * pulls).sum()

    def _loss(
        self,
        embeddings: mx.array,
        base: mx.array | None,
        rows: Sequence[SentenceRow],
        sentences: Sequence[Sentence],
    ) -> mx.array:
        """Return the weighted mean loss over anchors, from (sentences, dim) embeddings."""
        place = {sentence: index for index, sentence in enumerate(sentences)}
        anchors = [place[row.anchor] for row in rows]
        candidates = [place[sentence] for row in rows for sentence in row.candidates]
        similarities = _cosines(embeddings, anchors, candidates)
        if base is not None:
            similarities = similarities - _cosines(base, anchors, candidates)
        num_candidates = len(rows[0].candidates)
        losses = contrastive_nll(
            similarities / self._settings.temperature,
            num_candidates,
            mx.array(same_sentences(anchors, candidates, num_candidates)),
        )
        return self._settings.terms["embedding"] * losses.mean()


def _cosines(embeddings: mx.array, anchors: list[int], candidates: list[int]) -> mx.array:
    units = embeddings / mx.maximum(mx.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return units[mx.array(anchors)] @ units[mx.array(candidates)].T


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
