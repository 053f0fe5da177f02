"""The KL penalty: how far next-token distributions have moved from the base's, per token.

It is measured where it matters: on the completions of the batch, or on neutral text. The whole
vocabulary counts, so it holds the generator back where the preference terms would let it drift.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from sempa_mlx.data.batching import batches_by_length, largest
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.forward import final_hidden
from sempa_mlx.model.gradients import value_and_grad
from sempa_mlx.model.head import trained_kl
from sempa_mlx.model.lora import dialled
from sempa_mlx.model.scoring import Scorer
from sempa_mlx.training.contribution import Contribution
from sempa_mlx.world import World

TEXT_ROW = 64  # tokens of neutral text that are read in one piece

Part = TypeVar("Part")


class KlTerm(Generic[Part]):
    """Adds weight * mean over tokens of KL(base || model), in nats."""

    def __init__(
        self,
        model: nn.Module,
        weight: float,
        parts_of: Callable[[Sequence[int], World, int], list[Part]],
        states_of: Callable[[Part], mx.array],
        largest_of: Callable[[Sequence[Sequence[int]]], list[int]],
    ) -> None:
        """Keep what a step needs.

        Args:
            model: the model whose adapter is trained.
            weight: of the penalty in the loss.
            parts_of: cuts this process's share of a batch into forward passes.
            states_of: runs one, returning final states, (tokens, dim).
            largest_of: rows of the largest of them over some batches.
        """
        self._model, self._weight = model, weight
        self._parts_of, self._states_of = parts_of, states_of
        self._largest_of = largest_of
        self._loss_and_grad = value_and_grad(model, self._loss)

    def contribution(self, batch: Sequence[int], world: World, seed: int) -> Contribution:
        """Return loss and gradients of a batch of rows, given by their indices."""
        found = Contribution()
        for place, part in enumerate(self._parts_of(batch, world, seed)):
            mx.random.seed(world.seed(seed, place))  # of the masks of dropout
            with dialled(self._model, 0.0):
                base = self._states_of(part)
                mx.eval(base)
            loss, gradients = self._loss_and_grad(part, base)
            found.loss += float(loss)
            found.tokens += len(base)
            found.add(gradients)
        share = self._weight / max(1.0, world.total_of([float(found.tokens)])[0])
        found.loss *= share
        found.gradients = tree_map(lambda gradient: gradient * share, found.gradients)
        return found

    def largest_pass(self, batches: Sequence[Sequence[int]]) -> list[int]:
        """Return rows that fill the largest forward pass over these batches, the longest last."""
        return self._largest_of(batches)

    def _loss(self, part: Part, base: mx.array) -> mx.array:
        return trained_kl(self._model, self._states_of(part), base).sum()


def completion_kl(
    model: nn.Module, weight: float, rows: Sequence[TokenRow], scorer: Scorer, batch_tokens: int
) -> KlTerm[list[TokenRow]]:
    """Return the penalty on the completions of the rows of a batch."""

    def own_tokens(index: int) -> int:
        return scorer.own_tokens(rows[index])

    def cut(batch: Sequence[int]) -> list[list[int]]:
        return batches_by_length(batch, own_tokens, batch_tokens)

    def parts_of(batch: Sequence[int], world: World, _seed: int) -> list[list[TokenRow]]:
        return [[rows[index] for index in members] for members in cut(world.share(batch))]

    def largest_of(batches: Sequence[Sequence[int]]) -> list[int]:
        return largest((members for batch in batches for members in cut(batch)), own_tokens)

    return KlTerm(
        model, weight, parts_of, lambda part: scorer.states(model, part).hidden, largest_of
    )


def text_kl(
    model: nn.Module,
    weight: float,
    tokens: Sequence[int],
    step_tokens: int,
    batch_tokens: int,
    read: Callable[[Sequence[Sequence[int]]], mx.array] | None = None,
) -> KlTerm[list[Sequence[int]]]:
    """Return the penalty on pieces of a text, drawn anew for every step.

    Args:
        model: the model whose adapter is trained.
        weight: of the penalty in the loss.
        tokens: the text; at least two.
        step_tokens: tokens that a step looks at, rounded up to whole pieces.
        batch_tokens: bound of one forward pass.
        read: runs pieces, returning final states, (pieces, length, dim); by default as they come.
    """
    run = read or partial(final_hidden, model)
    length = min(TEXT_ROW, len(tokens))
    starts = range(0, len(tokens) - length + 1, length)
    pieces = [tokens[start : start + length] for start in starts]
    count = min(len(pieces), -(-step_tokens // length))

    def parts_of(_batch: Sequence[int], world: World, seed: int) -> list[list[Sequence[int]]]:
        # The same draw in every process: each takes its share of it.
        drawn = np.random.default_rng(seed).permutation(len(pieces))[:count]
        own = [pieces[index] for index in world.share(list(drawn))]
        a_pass = max(1, batch_tokens // length)
        return [own[start : start + a_pass] for start in range(0, len(own), a_pass)]

    def states_of(part: list[Sequence[int]]) -> mx.array:
        hidden = run(part)[:, :length]  # without what a GPU's passes are padded with
        return hidden.reshape(-1, hidden.shape[-1])

    # Whatever the rows are, all of the text is looked at: one row stands for any.
    return KlTerm(model, weight, parts_of, states_of, lambda batches: [*batches[0][:1]])
