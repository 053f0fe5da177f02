"""Objectives: the Plackett-Luce likelihood of a ranking, over scores.

    P(ranking | x) = prod_k  exp s_k / sum_{j >= k} exp s_j        (best candidate first)

With two candidates and s = beta * (log pi - log pi_ref) its negative logarithm is the loss of DPO.
The likelihood is shared with contrastive learning; gradients, geometry and optimum are not.
"""

import mlx.core as mx


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


def plackett_luce_nll(scores: mx.array, depth: int | None = None) -> mx.array:
    """Return the negative log-likelihood of each row's order, in nats.

    Args:
        scores: (rows, K) float32, best candidate first.
        depth: how many leading places count, 1 to K - 1. One place gives softmax-DPO (and InfoNCE
            on similarities); by default all K - 1, the full ranking.

    Returns:
        (rows,) float32; log K! for equal scores at full depth.

    Source: Plackett 1975; for K = 2 equation 7 of arXiv 2305.18290.
    """
    places = scores.shape[1] - 1 if depth is None else depth
    factors = [mx.logsumexp(scores[:, k:], axis=1) - scores[:, k] for k in range(places)]
    return sum(factors[1:], start=factors[0])
