"""Losses of a chosen and a rejected completion, one number a pair.

Notation of the docstrings:

    l+, l-   log-probability of the chosen and the rejected completion under the policy, in nats
    n+, n-   their lengths in tokens
    a, b, d  l+ and l- minus the same under the reference, and a - b
    s        the logistic sigmoid; -log s(z) is computed as softplus(-z), which never overflows
    e        `label_smoothing`, the chance that chosen and rejected are swapped, 0 <= e < 0.5

Every loss takes pairs and the settings, of which all read `beta` > 0 unless they say otherwise, and
returns (pairs,) float32, not averaged. Values and gradients stay finite for |d| of 10,000 nats.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from sempa_mlx.config import ObjectiveConfig

DISCOPOP_TEMPERATURE = 0.05
EXO_SMOOTHING = 1e-3  # stands in for 0, at which the loss is infinite
SURE = -1e-6  # mean log-probabilities above it differ from 0 by little more than rounding


class Pairs(NamedTuple):
    """What a loss may read of each pair, all (pairs,) float32.

    `chosen` and `rejected` are completion log-probabilities under the policy in nats, summed over
    tokens; `ref_chosen` and `ref_rejected` the same under the reference, through which no gradient
    flows. Lengths count scored tokens, the end of the turn included, >= 1.
    """

    chosen: mx.array
    rejected: mx.array
    ref_chosen: mx.array
    ref_rejected: mx.array
    chosen_length: mx.array
    rejected_length: mx.array

    @property
    def chosen_ratio(self) -> mx.array:
        """Return a, how much likelier the policy finds the chosen completion than the reference."""
        return self.chosen - mx.stop_gradient(self.ref_chosen)

    @property
    def rejected_ratio(self) -> mx.array:
        """Return b, the same for the rejected completion."""
        return self.rejected - mx.stop_gradient(self.ref_rejected)

    @property
    def difference(self) -> mx.array:
        """Return d = a - b."""
        return self.chosen_ratio - self.rejected_ratio


def sigmoid(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the loss of DPO, or of conservative DPO with label smoothing.

    -(1 - e) log s(beta d) - e log s(-beta d).
    Source: arXiv 2305.18290, equation 7; smoothing after Mitchell 2023 as in TRL 0.24 (later TRL
    ignores it here).
    """
    return _smoothed(settings.beta * pairs.difference, settings.label_smoothing)


def robust(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the loss whose mean over label flips of chance e is the one of DPO; may be negative.

    [-(1 - e) log s(beta d) + e log s(-beta d)] / (1 - 2 e).
    Source: arXiv 2403.00409; TRL.
    """
    logits = settings.beta * pairs.difference
    # The same with log s(-z) = log s(z) - z: nothing cancels as e comes close to 0.5.
    slope = settings.label_smoothing / (1.0 - 2.0 * settings.label_smoothing)
    return _minus_log_sigmoid(logits) - slope * logits


def hinge(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the hinge loss, which leaves pairs alone once d reaches 1 / beta.

    max(0, 1 - beta d).
    Source: SLiC, arXiv 2305.10425, on the ratios of arXiv 2309.06657; TRL.
    """
    return mx.maximum(0.0, 1.0 - settings.beta * pairs.difference)


def ipo(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the squared distance of the length-averaged difference to a fixed target.

    (a / n+ - b / n- - 1 / (2 beta))^2, with beta as the paper's tau.
    Source: arXiv 2310.12036, equation 17, with the averages of TRL (Mitchell's code sums).
    """
    return mx.square(_averaged_difference(pairs) - 0.5 / settings.beta)


def exo_pair(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the divergence of the policy's preference from the smoothed label, reversed.

    q log(q / (1 - e)) + (1 - q) log((1 - q) / e), q = s(beta d); e = 0 means 1e-3.
    Source: arXiv 2402.00856, equation 16; the stand-in for 0 is that of TRL 0.24.
    """
    smoothing = settings.label_smoothing or EXO_SMOOTHING
    logits = settings.beta * pairs.difference
    agreeing = -_minus_log_sigmoid(logits) - math.log1p(-smoothing)
    contradicting = -_minus_log_sigmoid(-logits) - math.log(smoothing)
    return mx.sigmoid(logits) * agreeing + mx.sigmoid(-logits) * contradicting


def nca_pair(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the loss of noise-contrastive alignment, which holds the chosen likelihood up.

    -log s(beta a) - 0.5 log s(-beta a) - 0.5 log s(-beta b).
    Source: arXiv 2402.05369; TRL.
    """
    chosen, rejected = _rewards(pairs, settings)
    against = _minus_log_sigmoid(-chosen) + _minus_log_sigmoid(-rejected)
    return _minus_log_sigmoid(chosen) + 0.5 * against


def bco_pair(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the loss of classifying chosen completions as 1 and rejected ones as 0.

    -log s(beta a) - log s(-beta b).
    Source: arXiv 2404.04656, without its moving shift of the rewards, as in TRL after 0.24.
    """
    chosen, rejected = _rewards(pairs, settings)
    return _minus_log_sigmoid(chosen) + _minus_log_sigmoid(-rejected)


def sppo_hard(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the squared distances of both ratios to fixed targets.

    (a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2.
    Source: arXiv 2405.00675 with win chances of 1 and 0; TRL.
    """
    target = 0.5 / settings.beta
    return mx.square(pairs.chosen_ratio - target) + mx.square(pairs.rejected_ratio + target)


def apo_zero(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the anchored loss for chosen completions better than what the model writes.

    1 - s(beta a) + s(beta b), within 0 and 2.
    Source: arXiv 2408.06266, equation 7; TRL.
    """
    chosen, rejected = _rewards(pairs, settings)
    return mx.sigmoid(-chosen) + mx.sigmoid(rejected)


def apo_down(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the anchored loss for chosen completions worse than what the model writes.

    s(beta a) + 1 - s(beta d), within 0 and 2.
    Source: arXiv 2408.06266, equation 8; TRL.
    """
    chosen, rejected = _rewards(pairs, settings)
    return mx.sigmoid(chosen) + mx.sigmoid(rejected - chosen)


def aot(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the loss of moving the policy's margins above the reference's, quantile by quantile.

    With g = sorted(l+ - l-) minus sorted(the same under the reference), each over the batch:
    -(1 - e) log s(beta g) - e log s(-beta g), in order of quantiles, not of pairs.
    Source: arXiv 2406.05882, paired; TRL.
    """
    reference = mx.stop_gradient(pairs.ref_chosen - pairs.ref_rejected)
    gaps = mx.sort(pairs.chosen - pairs.rejected) - mx.sort(reference)
    return _smoothed(settings.beta * gaps, settings.label_smoothing)


def aot_unpaired(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the loss of moving the chosen ratios above the rejected ones, quantile by quantile.

    With g = sorted(a) - sorted(b), each over the batch:
    -(1 - e) log s(beta g) - e log s(-beta g), in order of quantiles, not of pairs.
    Source: arXiv 2406.05882, unpaired; TRL, where it once was `aot_pair`.
    """
    gaps = mx.sort(pairs.chosen_ratio) - mx.sort(pairs.rejected_ratio)
    return _smoothed(settings.beta * gaps, settings.label_smoothing)


def discopop(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return a blend that is logistic for pairs in the wrong order and exponential for others.

    (1 - m) (-log s(z)) + m exp(-z), z = beta d, m = s(z / 0.05).
    Source: arXiv 2406.08414, equation 5; TRL.
    """
    logits = settings.beta * pairs.difference
    sharp = logits / DISCOPOP_TEMPERATURE
    # One exponent for m exp(-z), as exp(-z) alone overflows where m vanishes.
    exponential = mx.exp(-logits - _minus_log_sigmoid(sharp))
    return mx.sigmoid(-sharp) * _minus_log_sigmoid(logits) + exponential


def sigmoid_norm(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the loss of length-normalised DPO.

    -log s(beta (a / n+ - b / n-)).
    Source: TRL after 0.24; arXiv 2411.15124.
    """
    return _minus_log_sigmoid(settings.beta * _averaged_difference(pairs))


def dpop(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the loss of DPO-Positive, which holds the chosen likelihood above the reference's.

    -log s(beta (d - lambda max(0, -a))), lambda = `dpop_lambda` >= 0; 0 gives DPO. The penalty is
    inside the sigmoid and weighted by beta; at a = 0, where a run starts, it has no slope.
    Source: arXiv 2402.13228, equation 3.
    """
    lost = mx.where(pairs.chosen_ratio < 0, -pairs.chosen_ratio, 0.0)
    return _minus_log_sigmoid(settings.beta * (pairs.difference - settings.dpop_lambda * lost))


def simpo(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the loss of SimPO, which needs no reference.

    -log s(beta (l+ / n+ - l- / n-) - gamma), gamma >= 0.
    Source: arXiv 2405.14734.
    """
    chosen, rejected = _mean_log_probabilities(pairs)
    return _minus_log_sigmoid(settings.beta * (chosen - rejected) - settings.gamma)


def cpo(pairs: Pairs, settings: ObjectiveConfig) -> mx.array:
    """Return the preference part of CPO, which needs no reference.

    -log s(beta (l+ - l-)).
    Source: arXiv 2401.08417.
    """
    return _minus_log_sigmoid(settings.beta * (pairs.chosen - pairs.rejected))


def odds_ratio(pairs: Pairs, _settings: ObjectiveConfig) -> mx.array:
    """Return the odds-ratio part of ORPO without its weight; it needs no reference nor beta.

    -log s(log odds(p+) - log odds(p-)), odds(p) = p / (1 - p), log p+ = l+ / n+.
    Source: arXiv 2403.07691.
    """
    chosen, rejected = _mean_log_probabilities(pairs)
    return _minus_log_sigmoid(_log_odds(chosen) - _log_odds(rejected))


PAIR_LOSSES: dict[str, Callable[[Pairs, ObjectiveConfig], mx.array]] = {
    loss.__name__: loss
    for loss in (
        *(sigmoid, robust, hinge, ipo, exo_pair, nca_pair, bco_pair, sppo_hard),
        *(apo_zero, apo_down, aot, aot_unpaired, discopop, sigmoid_norm, dpop),
        *(simpo, cpo, odds_ratio),
    )
}
BATCHWISE = frozenset({"aot", "aot_unpaired"})  # the pairs of a batch share one loss


def _minus_log_sigmoid(logits: mx.array) -> mx.array:
    return mx.logaddexp(0.0, -logits)


def _smoothed(logits: mx.array, smoothing: float) -> mx.array:
    straight, swapped = _minus_log_sigmoid(logits), _minus_log_sigmoid(-logits)
    return (1.0 - smoothing) * straight + smoothing * swapped


def _rewards(pairs: Pairs, settings: ObjectiveConfig) -> tuple[mx.array, mx.array]:
    return settings.beta * pairs.chosen_ratio, settings.beta * pairs.rejected_ratio


def _averaged_difference(pairs: Pairs) -> mx.array:
    chosen = pairs.chosen_ratio / pairs.chosen_length
    return chosen - pairs.rejected_ratio / pairs.rejected_length


def _mean_log_probabilities(pairs: Pairs) -> tuple[mx.array, mx.array]:
    return pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length


def _log_odds(log_probability: mx.array) -> mx.array:
    # Only 1 - p is clipped: a completion the policy is sure of keeps a gradient of 1.
    unlikely = -mx.expm1(mx.minimum(log_probability, SURE))
    return log_probability - mx.log(unlikely)
