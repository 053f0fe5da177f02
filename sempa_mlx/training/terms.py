"""The loss of a run over completion log-probabilities: a weighted sum of terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import mlx.core as mx

from sempa_mlx.config import ObjectiveConfig
from sempa_mlx.config_terms import RANKED, REFERENCE_FREE, SENTENCE_TERMS
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.scoring import Scored
from sempa_mlx.training.objectives import implicit_rewards, plackett_luce_nll
from sempa_mlx.training.pairwise import BATCHWISE, PAIR_LOSSES, Pairs

ODDS_RATIO = "odds_ratio"


class Totals(NamedTuple):
    """What means divide by: the pairs and the chosen tokens of the whole optimizer batch."""

    pairs: int
    chosen_tokens: int


def completion_lengths(rows: Sequence[TokenRow]) -> mx.array:
    """Return the scored tokens of every completion: (rows, K) float32."""
    return mx.array([[float(len(ids)) for ids in row.completions] for row in rows])


def batch_totals(rows: Sequence[TokenRow]) -> Totals:
    """Count the pairs and the chosen tokens of a batch."""
    return Totals(len(rows), sum(len(row.completions[0]) for row in rows))


@dataclass(frozen=True)
class Objective:
    """The part of a loss that reads completion log-probabilities.

    `orpo` is its odds-ratio term, weighted with beta, plus the SFT term (arXiv 2403.07691); `cpo`
    is its preference term plus the SFT term (arXiv 2401.08417).
    """

    settings: ObjectiveConfig

    @cached_property
    def weights(self) -> dict[str, float]:
        """Return the weight of every term here, with compound ones taken apart."""
        weights: dict[str, float] = {}

        def add(name: str, weight: float) -> None:
            weights[name] = weights.get(name, 0.0) + weight

        for name, weight in self.settings.terms.items():
            if name in (*SENTENCE_TERMS, "kl"):
                continue
            if name == "orpo":
                add(ODDS_RATIO, weight * self.settings.beta)
            else:
                add(name, weight)
            if name in ("orpo", "cpo"):
                add("sft", weight)
        return weights

    @property
    def is_used(self) -> bool:
        """Tell whether completions have to be scored at all."""
        return bool(self.weights)

    @property
    def needs_reference(self) -> bool:
        """Tell whether any term compares with the reference."""
        return not self.weights.keys() <= {*REFERENCE_FREE, ODDS_RATIO, "sft"}

    @property
    def is_batchwise(self) -> bool:
        """Tell whether a pair's loss depends on the other pairs of the batch."""
        return not BATCHWISE.isdisjoint(self.weights)

    def rewards(self, policy: Scored, reference: Scored) -> mx.array:
        """Return the implicit rewards, (rows, K) float32, as TRL logs them."""
        return implicit_rewards(policy.sums, reference.sums, self.settings.beta)

    def __call__(
        self, policy: Scored, reference: Scored, lengths: mx.array, totals: Totals
    ) -> mx.array:
        """Return these rows' share of the batch's loss, a float32 scalar.

        Args:
            policy: log-probabilities, each (rows, K) float32.
            reference: the same under the reference, or zeros if no term needs it.
            lengths: (rows, K) float32, tokens of each completion.
            totals: of the whole batch; preference terms are means over its pairs, the SFT term is
                a mean over its chosen tokens (TRL's `rpo_alpha`).
        """
        kept = _desensitised(policy, self.settings), _desensitised(reference, self.settings)
        share = mx.zeros(())
        for name, weight in self.weights.items():
            if name == "sft":
                share = share - weight * policy.sums[:, 0].sum() / totals.chosen_tokens
            else:
                losses = self._losses(name, *kept, lengths)
                share = share + weight * losses.sum() / totals.pairs
        return share

    def _losses(
        self, name: str, policy: mx.array, reference: mx.array, lengths: mx.array
    ) -> mx.array:
        settings = self.settings
        if name in RANKED:
            scores = implicit_rewards(policy, reference, settings.beta)
            if name == "softmax":
                return plackett_luce_nll(scores, depth=1)
            return plackett_luce_nll(scores, later_weight=settings.second_weight)
        pairs = Pairs(
            policy[:, 0],
            policy[:, -1],
            reference[:, 0],
            reference[:, -1],
            lengths[:, 0],
            lengths[:, -1],
        )
        return PAIR_LOSSES[name](pairs, settings)


def _desensitised(scored: Scored, settings: ObjectiveConfig) -> mx.array:
    """Weigh tokens beyond the shorter completion by `ld_alpha` (LD-DPO, arXiv 2409.06411)."""
    if settings.ld_alpha is None:
        return scored.sums
    return scored.sums - (1.0 - settings.ld_alpha) * scored.tails
