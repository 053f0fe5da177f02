"""Is the model still a generator? Perplexity of a text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx.model.head import target_logps, text_model

WINDOW = 512


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp(mean negative log-likelihood) over `num_scored` tokens of `num_tokens`."""

    perplexity: float
    num_tokens: int
    num_scored: int


def text_perplexity(
    model: nn.Module,
    tokens: Sequence[int],
    *,
    window: int = WINDOW,
    on_progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """Measure perplexity over consecutive windows that do not overlap.

    The first token of a window has no context and is not scored, so values depend on `window`:
    compare only figures of the same window, text and tokenizer.

    Args:
        model: evaluated as it is now, with its adapter as dialled.
        tokens: the whole text as token ids.
        window: tokens in one forward pass, >= 2; a last window of one token is left out.
        on_progress: called with the number of tokens done.
    """
    total, scored = 0.0, 0
    for start in range(0, len(tokens), window):
        chunk = list(tokens[start : start + window])
        if len(chunk) < 2:
            break
        hidden = text_model(model).model(mx.array([chunk[:-1]]))[0]
        total -= float(np.array(target_logps(model, hidden, mx.array(chunk[1:])).sum()))
        scored += len(chunk) - 1
        if on_progress:
            on_progress(len(chunk))
    perplexity = math.exp(total / scored) if scored else float("nan")
    return Perplexity(perplexity, len(tokens), scored)
