"""Non-negative sparse codes over a given dictionary, by monotone FISTA.

    minimise over z >= 0:   0.5 ||x - D'z||^2 + penalty * sum z

A proximal gradient step has length 1/L, L the largest eigenvalue of D D', and the soft threshold
penalty/L; momentum makes it converge as 1/t^2 (Beck & Teboulle 2009, SIAM J. Imaging Sci. 2).
Plain FISTA may rise between steps. The monotone variant keeps a row's last code where a step would
raise its objective (Beck & Teboulle 2009, IEEE Trans. Image Process. 18, MFISTA).
"""

from dataclasses import dataclass

import numpy as np

STEPS = 50
POWER_STEPS = 100
SMALLEST = 1e-30  # a dictionary of zeros leaves the codes at zero
HEADROOM = 1.01  # the power method approaches the eigenvalue from below


@dataclass(frozen=True, slots=True)
class Solution:
    """Codes (n, hidden) float32, and the objective of each row after every step, (steps + 1, n)."""

    codes: np.ndarray
    objectives: np.ndarray


def nonnegative_codes(
    vectors: np.ndarray, dictionary: np.ndarray, penalty: float, steps: int = STEPS
) -> Solution:
    """Find sparse codes.

    Args:
        vectors: (n, dim) float32.
        dictionary: (hidden, dim) float32, an atom a row.
        penalty: >= 0, weight of the sum of a code's values.
        steps: proximal gradient steps, all from zero.
    """
    step = 1.0 / max(largest_eigenvalue(dictionary), SMALLEST)
    codes = np.zeros((len(vectors), len(dictionary)), dtype=np.float32)
    rebuilt = np.zeros_like(vectors)
    ahead, ahead_rebuilt, pace = codes, rebuilt, 1.0
    objective = 0.5 * (vectors**2).sum(axis=1)
    objectives = [objective]
    for _ in range(steps):
        pull = (vectors - ahead_rebuilt) @ dictionary.T
        tried = np.maximum(ahead + np.float32(step) * (pull - np.float32(penalty)), 0)
        tried_rebuilt = tried @ dictionary
        reached = 0.5 * ((vectors - tried_rebuilt) ** 2).sum(axis=1) + penalty * tried.sum(axis=1)
        falls = (reached <= objective)[:, None]
        objective = np.minimum(reached, objective)
        objectives.append(objective)
        following = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        # Towards the tried point where it was refused, along the last move where it was taken.
        taken, refused = np.float32((pace - 1) / following), np.float32(pace / following)
        kept, kept_rebuilt = np.where(falls, tried, codes), np.where(falls, tried_rebuilt, rebuilt)
        ahead = kept + np.where(falls, taken * (kept - codes), refused * (tried - kept))
        ahead_rebuilt = kept_rebuilt + np.where(
            falls,
            taken * (kept_rebuilt - rebuilt),
            refused * (tried_rebuilt - kept_rebuilt),
        )
        codes, rebuilt, pace = kept, kept_rebuilt, following
    return Solution(codes, np.stack(objectives))


def largest_eigenvalue(dictionary: np.ndarray, steps: int = POWER_STEPS) -> float:
    """Return an upper estimate of the largest eigenvalue of D D', by the power method.

    Args:
        dictionary: (hidden, dim).
        steps: of the power method.
    """
    gram = dictionary.T.astype(np.float64) @ dictionary
    direction = np.random.default_rng(0).standard_normal(len(gram))
    for _ in range(steps):
        direction = gram @ direction
        length = np.linalg.norm(direction)
        if length == 0:
            return 0.0
        direction /= length
    return float(HEADROOM * direction @ gram @ direction)
