"""How the next token of one chat is drawn."""

import secrets
from collections.abc import Callable

import mlx.core as mx
from mlx_lm.sample_utils import apply_top_p, make_sampler

from sempa_mlx.serve.chat_request import ChatRequest

Draw = Callable[[mx.array], mx.array]
SEEDS = 1 << 63
GREEDY: Draw = make_sampler(0.0)  # one for all chats: those of one sampler are drawn in one call


def draw_of(request: ChatRequest) -> Draw:
    """Return what draws the tokens of a chat.

    Chats draw from generators of their own, not from mlx's global one, so that a seed means the
    same whatever else runs.
    """
    if request.temperature == 0 or request.top_p == 0:
        return GREEDY
    seed = secrets.randbelow(SEEDS) if request.seed is None else request.seed % SEEDS
    return SeededDraw(seed, request.temperature, request.top_p)


class SeededDraw:
    """Draws one token after the other from a seed."""

    def __init__(self, seed: int, temperature: float, top_p: float) -> None:
        """Begin a chat."""
        self._key = mx.random.key(seed)
        self._temperature = temperature
        self._top_p = top_p

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Draw (1,) token ids from (1, vocabulary) log-probabilities."""
        self._key, now = mx.random.split(self._key)
        if self._top_p < 1:
            logprobs = apply_top_p(logprobs, self._top_p)
        return mx.random.categorical(logprobs * (1 / self._temperature), key=now)
