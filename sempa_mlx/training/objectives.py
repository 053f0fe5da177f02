"""Objectives: the Plackett-Luce likelihood of a ranking, over scores.

    P(ranking | x) = prod_k  exp s_k / sum_{j >= k} exp s_j        (best candidate first)

With two candidates and s = beta * (log pi - log pi_ref) its negative logarithm is the loss of DPO;
with s = cos / t and the first factor alone it is InfoNCE. The likelihood is what they share;
gradients, geometry and optimum are not.
"""

import mlx.core as mx

IMPOSSIBLE = -1e9  # the score of a candidate that does not take part


def implicit_rewards(policy: mx.array, reference: mx.array, beta: float) -> mx.array:
    """Return beta * (log pi - log pi_ref) for each candidate.

    Args:
        policy: (rows, K) float32, summed completion log-probabilities in nats.
        reference: the same under the reference; no gradient flows through it.
        beta: > 0, strength of the pull towards the reference.

    Returns:
        (rows, K) float32.

    Source: Rafailov et al. 2023 (arXiv 2305.18290), equation 5 without its constant.
    """
    return beta * (policy - mx.stop_gradient(reference))


def plackett_luce_nll(
    scores: mx.array, depth: int | None = None, later_weight: float = 1.0
) -> mx.array:
    """Return the negative log-likelihood of each row's order, in nats.

    Args:
        scores: (rows, K) float32, best candidate first.
        depth: how many leading places count, 1 to K - 1. One place gives softmax-DPO (and InfoNCE
            on similarities); by default all K - 1, the full ranking.
        later_weight: >= 0, weight of every place after the first.

    Returns:
        (rows,) float32; log K! for equal scores at full depth and equal weight.

    Source: Plackett 1975; for K = 2 equation 7 of arXiv 2305.18290; depth 1 is arXiv 2406.09215.
    """
    places = scores.shape[1] - 1 if depth is None else depth
    factors = [mx.logsumexp(scores[:, k:], axis=1) - scores[:, k] for k in range(places)]
    return sum((later_weight * factor for factor in factors[1:]), start=factors[0])


def contrastive_nll(similarities: mx.array, num_candidates: int, taken_out: mx.array) -> mx.array:
    """Return how unlikely it is that each anchor's own best candidate comes first, in nats.

    Args:
        similarities: (anchors, anchors * K) float32, scores of every anchor with the candidates of
            all, K each, best first: other anchors' candidates are in-batch negatives, an anchor's
            own later candidates are hard negatives.
        num_candidates: K >= 1.
        taken_out: the same shape, bool: pairs that must not count as negatives.

    Returns:
        (anchors,) float32.

    Source: the first Plackett-Luce factor; InfoNCE with hard negatives as in SimCSE (arXiv
    2104.08821, equation 5).
    """
    count, total = similarities.shape
    places = mx.arange(count) * num_candidates
    own = mx.take_along_axis(similarities, places[:, None], axis=1)
    is_own = mx.arange(total)[None, :] == places[:, None]
    others = mx.where(is_own | taken_out, IMPOSSIBLE, similarities)
    return plackett_luce_nll(mx.concatenate([own, others], axis=1), depth=1)
