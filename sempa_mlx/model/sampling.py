"""How the next token of one text is drawn, whatever else runs beside it."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import make_sampler

Draw = Callable[[mx.array], mx.array]
COLDEST = 1e-6  # at this one tokens that are a ten-thousandth of a nat apart are e^-100 apart
GREEDY: Draw = make_sampler(0.0)  # one for all texts: those of one sampler are drawn in one call


def draw_from(seed: int, temperature: float, top_p: float) -> Draw:
    """Return what draws the tokens of one text; the likeliest each time if either number is 0.

    A temperature too low for float32 to divide by counts as 0.

    Args:
        seed: >= 0; the same one gives the same draws.
        temperature: >= 0; divides the log-probabilities.
        top_p: 0 to 1; tokens beyond the fewest with this probability together are never drawn.
    """
    return SeededDraw(seed, temperature, top_p) if temperature > COLDEST and top_p > 0 else GREEDY


class SeededDraw:
    """Draws one token after the other from a seed of its own, not from mlx's global generator.

    Probabilities are cut by `top_p` before the temperature is applied, as mlx-lm does.
    """

    def __init__(self, seed: int, temperature: float, top_p: float) -> None:
        """Begin a text."""
        # NumPy draws from a vocabulary six times as fast as mlx does on a CPU.
        self._random = np.random.default_rng(seed)
        self._temperature = temperature
        self._top_p = top_p

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Draw (1,) token ids from (1, vocabulary) log-probabilities."""
        row = np.array(logprobs[0].astype(mx.float32))
        if self._top_p < 1:
            row = np.where(row >= _least(row, self._top_p), row, -np.inf)
        weights = np.exp((row - row.max()) / self._temperature)
        sums = np.cumsum(weights, dtype=np.float64)
        token = np.searchsorted(sums[:-1], self._random.random() * sums[-1], side="right")
        return mx.array([int(token)], dtype=mx.uint32)


def _least(logprobs: np.ndarray, mass: float) -> np.float32:
    """Return the least of the fewest largest log-probabilities that have this mass together."""
    ordered = np.sort(logprobs)[::-1]
    count = np.searchsorted(np.cumsum(np.exp(ordered[:-1]), dtype=np.float64), mass)
    least: np.float32 = ordered[count]
    return least
