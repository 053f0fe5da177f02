"""The terms over embeddings: one machine that embeds a batch's sentences and takes their losses.

Every distinct sentence of the batch is embedded for all losses, in forward passes of sentences of
like length. Where they fit into `micro_batch_tokens` together, one gradient is taken through all.
Else the gradient of the losses to the embeddings is found first and carried through each pass
afterwards (gradient caching, arXiv 2101.06983): exact, at the price of a second pass without
gradients, with memory that does not grow with the batch. Other trainable weights of the model that
a loss reads, as those of a sparse coder, get their gradients as well.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx.data.batching import Passes
from sempa_mlx.model.gradients import value_and_grad
from sempa_mlx.model.head import hidden_size
from sempa_mlx.model.lora import dialled
from sempa_mlx.training.contribution import Contribution
from sempa_mlx.training.sentence_losses import SentenceBatch, SentenceLoss
from sempa_mlx.world import World

Sentence = tuple[int, ...]
Embed = Callable[[Sequence[Sentence]], mx.array]
CutPasses = Callable[[Sequence[int], int], Passes]


@dataclass(frozen=True, slots=True)
class SentenceRow:
    """An anchor and its K candidates, best first, each as the tokens of its embedding prompt."""

    anchor: Sentence
    candidates: tuple[Sentence, ...]


@dataclass(frozen=True, slots=True)
class WeightedLoss:
    """A loss, its weight, and whether it looks at the base's embeddings too."""

    weight: float
    loss: SentenceLoss
    needs_base: bool = False


class SentenceTerm:
    """Takes losses of the embeddings of a batch."""

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[SentenceRow],
        embed: Embed,
        passes: CutPasses,
        losses: Mapping[str, WeightedLoss],
        micro_batch_tokens: int,
    ) -> None:
        """Keep what a step needs.

        Args:
            model: the model whose adapter is trained.
            rows: one row for each preference row.
            embed: turns token rows into (rows, hidden size) float32 embeddings under the adapter as
                it is dialled, with gradients.
            passes: groups sentences, given by their lengths, so that no pass has more than so many
                tokens.
            losses: by name.
            micro_batch_tokens: bound of what one gradient is taken through.
        """
        self._model, self._rows, self._embed, self._cut = model, rows, embed, passes
        self._losses = losses
        self._micro_batch_tokens = micro_batch_tokens
        self._pulled_grad = value_and_grad(model, self._pulled)
        self._whole_grad = value_and_grad(
            model,
            lambda sentences, groups, base, rows: self._loss(
                self._joined(sentences, groups), base, rows, sentences
            ),
        )
        self._base: dict[Sentence, np.ndarray] = {}

    def contribution(self, batch: Sequence[int], world: World, seed: int) -> Contribution:
        """Return loss and gradients of the whole batch through this process's sentences.

        The losses themselves, and the gradients of what they read beside embeddings, are counted by
        the first process alone.
        """
        rows = [self._rows[index] for index in batch]
        sentences = list(dict.fromkeys(s for row in rows for s in (row.anchor, *row.candidates)))
        own = world.share(range(len(sentences)))
        groups, tokens = self._passes(sentences, own)
        base = self._base_embeddings(sentences) if self._needs_base else None
        if tokens <= self._micro_batch_tokens and world.size == 1:
            mx.random.seed(world.seed(seed, 0))
            (_, parts), gradients = self._whole_grad(sentences, groups, base, rows)
            found = self._counted(parts, is_first=True)
            found.tokens = sum(map(len, sentences))
            found.add(gradients)
            return found
        embeddings = self._embed_all(sentences, groups, world, seed)
        parts, direct, pulls = self._pulls(embeddings, base, rows, sentences)
        found = self._counted(parts, is_first=world.rank == 0)
        if world.rank == 0:
            found.add(direct)
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
        room, rows = self._micro_batch_tokens, list[int]()
        for index in sorted(heaviest, key=tokens, reverse=True):
            room -= tokens(index)
            if room < 0 and rows:  # one that is too long by itself is run all the same
                break
            rows.append(index)
        return rows[::-1]

    @property
    def _needs_base(self) -> bool:
        return any(each.needs_base for each in self._losses.values())

    def _counted(self, parts: Sequence[mx.array], *, is_first: bool) -> Contribution:
        values = [float(part) if is_first else 0.0 for part in parts]
        return Contribution(loss=sum(values), parts=dict(zip(self._losses, values, strict=True)))

    def _passes(self, sentences: Sequence[Sentence], indices: Sequence[int]) -> Passes:
        """Group sentences, given by their indices, into forward passes; the longest come last."""
        lengths = [len(sentences[index]) for index in indices]
        groups, tokens = self._cut(lengths, self._micro_batch_tokens)
        return Passes([[indices[place] for place in group] for group in groups], tokens)

    def _joined(self, sentences: Sequence[Sentence], groups: Sequence[Sequence[int]]) -> mx.array:
        """Return the embeddings of all sentences in order, (sentences, dim), with gradients."""
        parts = [self._embed([sentences[index] for index in group]) for group in groups]
        order = np.argsort([index for group in groups for index in group])
        return mx.concatenate(parts)[mx.array(order)]

    def _embed_all(
        self, sentences: Sequence[Sentence], groups: list[list[int]], world: World, seed: int
    ) -> mx.array:
        """Return the embeddings of all sentences, (sentences, dim), without a graph."""
        vectors = np.zeros((len(sentences), hidden_size(self._model)), dtype=np.float32)
        for place, group in enumerate(groups):
            mx.random.seed(world.seed(seed, place))
            vectors[group] = np.array(self._embed([sentences[index] for index in group]))
        total: mx.array = world.total(mx.array(vectors))
        mx.eval(total)  # here, by all: what a process does not use it would not add
        return total

    def _base_embeddings(self, sentences: Sequence[Sentence]) -> mx.array:
        """Return what the untouched base gives; each sentence is embedded once a run."""
        missing = [sentence for sentence in sentences if sentence not in self._base]
        with dialled(self._model, 0.0):
            for group in self._passes(missing, range(len(missing))).groups:
                members = [missing[index] for index in group]
                self._base.update(zip(members, np.array(self._embed(members)), strict=True))
        return mx.array(np.stack([self._base[sentence] for sentence in sentences]))

    def _pulls(
        self,
        embeddings: mx.array,
        base: mx.array | None,
        rows: Sequence[SentenceRow],
        sentences: Sequence[Sentence],
    ) -> tuple[list[mx.array], dict[str, object], mx.array]:
        """Return the losses, and their gradients: to weights that they read, and to embeddings."""

        def loss(weights: dict[str, object], vectors: mx.array) -> tuple[mx.array, list[mx.array]]:
            self._model.update(weights)
            return self._loss(vectors, base, rows, sentences)

        weights = self._model.trainable_parameters()
        (_, parts), (direct, pulls) = mx.value_and_grad(loss, argnums=(0, 1))(weights, embeddings)
        return parts, direct, pulls

    def _pulled(self, sentences: Sequence[Sentence], pulls: mx.array) -> mx.array:
        """Return a value whose gradient is that of the batch's loss through these sentences."""
        return (self._embed(sentences) * pulls).sum()

    def _loss(
        self,
        embeddings: mx.array,
        base: mx.array | None,
        rows: Sequence[SentenceRow],
        sentences: Sequence[Sentence],
    ) -> tuple[mx.array, list[mx.array]]:
        """Return the sum of the weighted losses of (sentences, dim) embeddings, and each."""
        place = {sentence: index for index, sentence in enumerate(sentences)}
        batch = SentenceBatch(
            embeddings,
            base,
            [place[row.anchor] for row in rows],
            [place[sentence] for row in rows for sentence in row.candidates],
        )
        parts = [each.weight * each.loss(batch) for each in self._losses.values()]
        return sum(parts[1:], start=parts[0]), parts
