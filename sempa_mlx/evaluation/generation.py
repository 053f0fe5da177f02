"""Is the model still a generator? Perplexity of a text, and how far predictions have moved."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx.evaluation.means import Mean, clustered_mean
from sempa_mlx.model.forward import final_hidden
from sempa_mlx.model.head import moved_predictions, target_logps
from sempa_mlx.model.lora import dialled

WINDOW = 512
BATCH_TOKENS = 2048

Windows = list[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """exp(mean negative log-likelihood) over `num_scored` tokens of `num_tokens`.

    `standard_error` counts the windows as the sample, and goes through exp by the delta method.
    """

    perplexity: float
    standard_error: float
    num_tokens: int
    num_scored: int


@dataclass(frozen=True, slots=True)
class Drift:
    """The generator at one scale of its adapter: perplexity, and mean KL(base || model) in nats."""

    scale: float
    perplexity: Perplexity
    kl: Mean


@dataclass(slots=True)
class _Sums:
    """What has been added up, one number a window."""

    nats: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)


def text_perplexity(
    model: nn.Module,
    tokens: Sequence[int],
    *,
    window: int = WINDOW,
    batch_tokens: int = BATCH_TOKENS,
    on_progress: Callable[[int], None] | None = None,
) -> Perplexity:
    """Measure perplexity over consecutive windows that do not overlap.

    The first token of a window has no context and is not scored, so values depend on `window`:
    compare only figures of the same window, text and tokenizer.

    Args:
        model: evaluated as it is now, with its adapter as dialled.
        tokens: the whole text as token ids.
        window: tokens a context may have, >= 2; a last window of one token is left out.
        batch_tokens: bound of one forward pass, of one window at least; values do not depend on it.
        on_progress: called with the number of tokens done.
    """
    nats: list[float] = []
    counts: list[int] = []
    for batch in _batches(tokens, window, batch_tokens):
        hidden, targets = _predictions(model, batch)
        nats += _per_window(-target_logps(model, hidden, targets), batch)
        counts += _scored(batch)
        if on_progress:
            on_progress(sum(map(len, batch)))
    return _perplexity(nats, counts, len(tokens))


def text_drift(
    model: nn.Module,
    tokens: Sequence[int],
    scales: Sequence[float],
    *,
    window: int = WINDOW,
    batch_tokens: int = BATCH_TOKENS,
    on_progress: Callable[[int], None] | None = None,
) -> list[Drift]:
    """Measure perplexity and mean KL(base || model) along the adapter's scale, on the same tokens.

    The base is the model with its adapter at 0, run once for all scales. KL is taken over the whole
    vocabulary wherever a token is scored, and is exactly 0 at scale 0. See `text_perplexity` for
    the windows.

    Args:
        model: with an adapter or without; without one every scale is the base.
        tokens: the whole text as token ids.
        scales: one result each, in this order.
        window: tokens a context may have, >= 2.
        batch_tokens: bound of one forward pass.
        on_progress: called with the number of tokens done at a scale.
    """
    progress = on_progress or (lambda _count: None)
    found = {scale: _Sums() for scale in scales}
    moving = [scale for scale in found if scale != 0]
    counts: list[int] = []
    for batch in _batches(tokens, window, batch_tokens):
        with dialled(model, 0.0):
            base, targets = _predictions(model, batch)
            mx.eval(base)
        states = []
        for scale in moving:
            with dialled(model, scale):
                hidden, _ = _predictions(model, batch)
                mx.eval(hidden)  # one scale's forward pass at a time in memory
            states.append(hidden)
            progress(sum(map(len, batch)))
        logps, moved = moved_predictions(model, base, targets, states)
        mx.eval(logps, moved)
        predicted = {0.0: (logps, mx.zeros_like(logps)), **dict(zip(moving, moved, strict=True))}
        counts += _scored(batch)
        for scale, sums in found.items():
            own, kl = predicted[scale]
            sums.nats += _per_window(-own, batch)
            sums.kl += _per_window(kl, batch)
        if 0.0 in found:
            progress(sum(map(len, batch)))
    return [
        Drift(
            scale,
            _perplexity(found[scale].nats, counts, len(tokens)),
            clustered_mean(found[scale].kl, counts),
        )
        for scale in scales
    ]


def _batches(tokens: Sequence[int], window: int, batch_tokens: int) -> Iterator[Windows]:
    """Cut a text into windows, and yield as many at a time as one forward pass may hold."""
    starts = range(0, len(tokens), window)
    windows = [chunk for start in starts if len(chunk := tokens[start : start + window]) > 1]
    a_pass = max(1, batch_tokens // window)
    for first in range(0, len(windows), a_pass):
        yield windows[first : first + a_pass]


def _predictions(model: nn.Module, batch: Windows) -> tuple[mx.array, mx.array]:
    """Return the (n, dim) states that predict a token, and the (n,) tokens; window after window."""
    hidden = final_hidden(model, [chunk[:-1] for chunk in batch])
    length = hidden.shape[1]
    picks = [
        index * length + place
        for index, count in enumerate(_scored(batch))
        for place in range(count)
    ]
    targets = [token for chunk in batch for token in chunk[1:]]
    return hidden.reshape(-1, hidden.shape[-1])[mx.array(picks)], mx.array(targets)


def _scored(batch: Windows) -> list[int]:
    """Count the tokens of each window that are predicted."""
    return [len(chunk) - 1 for chunk in batch]


def _per_window(values: mx.array, batch: Windows) -> list[float]:
    """Add up the values of each window's tokens, in double precision."""
    ends = np.cumsum(_scored(batch))[:-1]
    parts = np.split(np.array(values, dtype=np.float64), ends)
    return [float(part.sum()) for part in parts]


def _perplexity(nats: Sequence[float], counts: Sequence[int], num_tokens: int) -> Perplexity:
    mean = clustered_mean(nats, counts)
    perplexity = math.exp(mean.value)
    return Perplexity(perplexity, perplexity * mean.standard_error, num_tokens, mean.count)
