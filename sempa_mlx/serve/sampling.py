"""How the next token of one chat is drawn."""

import secrets

from sempa_mlx.model.sampling import Draw, draw_from
from sempa_mlx.serve.chat_request import ChatRequest

SEEDS = 1 << 63


def draw_of(request: ChatRequest) -> Draw:
    """Return what draws the tokens of a chat; a seed means the same whatever else runs."""
    seed = secrets.randbelow(SEEDS) if request.seed is None else request.seed % SEEDS
    return draw_from(seed, request.temperature, request.top_p)
