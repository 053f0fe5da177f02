"""The terms of the loss that read completion log-probabilities, and their gradients.

Gradients are accumulated over micro-batches. Where a pair's loss depends on the others of its batch
(`aot`), all log-probabilities come first and the gradients follow in a second pass, so that the
result does not depend on how the batch was cut.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx.config import ObjectiveConfig
from sempa_mlx.data.batching import batches_by_length, largest
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.gradients import value_and_grad
from sempa_mlx.model.scoring import Scored, Scorer, score_states
from sempa_mlx.training.contribution import Contribution
from sempa_mlx.training.reference import Reference
from sempa_mlx.training.terms import Objective, Totals, batch_totals, completion_lengths
from sempa_mlx.world import World


class PreferenceTerm:
    """Scores the completions of preference rows and pulls them apart."""

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[TokenRow],
        scorer: Scorer,
        reference: Reference,
        settings: ObjectiveConfig,
        micro_batch_tokens: int,
    ) -> None:
        """Keep what a step needs; nothing is computed yet."""
        self._model, self._rows, self._scorer = model, rows, scorer
        self._reference = reference
        self._objective = Objective(settings)
        self._micro_batch_tokens = micro_batch_tokens
        self._loss_and_grad = value_and_grad(model, self._loss)
        self._pulled_grad = value_and_grad(model, self._pulled)

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def contribution(self, batch: Sequence[int], world: World, seed: int) -> Contribution:
        """Return loss and gradients of a batch of rows, given by their indices.

        Args:
            batch: rows of the whole batch; this process computes its share of them.
            world: the processes that share the batch.
            seed: of the dropout masks of this step.
        """
        found = Contribution(expected_loss=0.0, has_pairs=True)
        indices = world.share(batch)
        totals = batch_totals([self._rows[index] for index in batch])
        if self._objective.is_batchwise and indices:
            self._accumulate_pulls(found, indices, totals, world, seed)
            return found
        for place, members in enumerate(self._micro_batches(indices)):
            rows = [self._rows[index] for index in members]
            reference = self._reference_of(members)
            mx.random.seed(world.seed(seed, place))
            (loss, policy), gradients = self._loss_and_grad(rows, reference, totals)
            mx.eval(loss, policy)
            found.add(gradients)
            found.loss += float(loss)
            self._note(found, rows, policy, reference)
            found.expected_loss = _sum_known(
                found.expected_loss, self._expected(rows, reference, totals)
            )
        return found

    def largest_pass(self, batches: Sequence[Sequence[int]]) -> list[int]:
        """Return the rows of the largest forward pass over these batches, the longest last."""
        passes = (members for batch in batches for members in self._micro_batches(batch))
        return largest(passes, self._own_tokens)

    def measure(self, *, is_base: bool = False) -> dict[str, float]:
        """Return accuracy over all rows, and the loss if a term compares completions.

        The base prefers nothing to its own reference: what rounding makes of that does not count.
        """
        groups = self._micro_batches(range(len(self._rows)))
        policies = []
        for members in groups:
            policies.append(self._scorer(self._model, [self._rows[index] for index in members]))
            mx.eval(policies[-1])
        policy = _joined(policies)
        reference = _joined([self._reference_of(members) for members in groups])
        rows = [self._rows[index] for members in groups for index in members]
        found = {}
        if self._objective.is_used:
            totals = batch_totals(rows)
            loss = self._objective(policy, reference, completion_lengths(rows), totals)
            found["eval/loss"] = float(loss)
        rewards = self._objective.rewards(policy, reference)
        wins = float((rewards[:, 0] > rewards[:, -1]).mean())
        is_tied = is_base and self._objective.needs_reference
        return found | {"eval/accuracies": 0.0 if is_tied else wins}

    def _micro_batches(self, indices: Sequence[int]) -> list[list[int]]:
        """Cut rows into forward passes that fit the token budget."""
        return batches_by_length(indices, self._own_tokens, self._micro_batch_tokens)

    def _own_tokens(self, index: int) -> int:
        return self._scorer.own_tokens(self._rows[index])

    def _reference_of(self, members: Sequence[int]) -> Scored:
        if self._objective.needs_reference:
            return self._reference.scored(members)
        zeros = mx.zeros((len(members), len(self._rows[0].completions)))
        return Scored(zeros, zeros)

    def _score(self, rows: Sequence[TokenRow]) -> Scored:
        states = self._scorer.states(self._model, rows)
        return score_states(self._model, states, training=True)

    def _loss(
        self, rows: Sequence[TokenRow], reference: Scored, totals: Totals
    ) -> tuple[mx.array, Scored]:
        policy = self._score(rows)
        return self._objective(policy, reference, completion_lengths(rows), totals), policy

    def _pulled(self, rows: Sequence[TokenRow], pulls: Scored) -> mx.array:
        """Return a value whose gradient is that of the batch's loss through these rows."""
        policy = self._score(rows)
        return (policy.sums * pulls.sums).sum() + (policy.tails * pulls.tails).sum()

    def _accumulate_pulls(
        self, found: Contribution, indices: list[int], totals: Totals, world: World, seed: int
    ) -> None:
        """Find the loss of the whole batch first, then each micro-batch's part of its gradient."""
        groups = self._micro_batches(indices)
        rows = [[self._rows[index] for index in members] for members in groups]
        policies = []
        for place, members in enumerate(rows):
            mx.random.seed(world.seed(seed, place))
            policies.append(self._score(members))
            mx.eval(policies[-1])
        policy = _joined(policies)
        reference = _joined([self._reference_of(members) for members in groups])
        every = [row for members in rows for row in members]
        lengths = completion_lengths(every)

        def whole(sums: mx.array, tails: mx.array) -> mx.array:
            return self._objective(Scored(sums, tails), reference, lengths, totals)

        loss, pulls = mx.value_and_grad(whole, argnums=(0, 1))(*policy)
        found.loss = float(loss)
        found.expected_loss = self._expected(every, reference, totals)
        self._note(found, every, policy, reference)
        start = 0
        for place, members in enumerate(rows):
            end = start + len(members)
            mx.random.seed(world.seed(seed, place))  # the masks of the first pass
            _, gradients = self._pulled_grad(members, Scored(*(pull[start:end] for pull in pulls)))
            found.add(gradients)
            start = end

    def _expected(
        self, rows: Sequence[TokenRow], reference: Scored, totals: Totals
    ) -> float | None:
        """Return the loss that these rows have when the policy is the reference."""
        if not self._objective.needs_reference:
            return None
        return float(self._objective(reference, reference, completion_lengths(rows), totals))

    def _note(
        self, found: Contribution, rows: Sequence[TokenRow], policy: Scored, reference: Scored
    ) -> None:
        found.rewards += np.array(self._objective.rewards(policy, reference)).tolist()
        found.logps += np.array(policy.sums).tolist()
        found.tokens += self._scorer.tokens(rows)


def _joined(parts: Sequence[Scored]) -> Scored:
    return Scored(*(mx.concatenate(list(arrays)) for arrays in zip(*parts, strict=True)))


def _sum_known(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left + right
