"""The output head on chosen hidden states: log-probabilities of targets, in float32.

The head runs only where something is predicted, and block by block, so that no array of all rows
times the whole vocabulary exists at once. No gradient reaches the weights of the head: adapters
never sit there.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.model.cpu_kernels import logsumexp, probabilities

UNIT = 2.0**-6  # a power of two scales without rounding
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")  # what settings call the length of a state
BLOCK_ROWS = 128  # states that meet the whole vocabulary at once


def text_model(model: nn.Module) -> nn.Module:
    """Return the language model inside a multimodal wrapper, or the model itself."""
    return model.language_model if "language_model" in model else model


def hidden_size(model: nn.Module) -> int:
    """Return the length of the model's hidden states.

    Raises:
        ModelError: the model's settings do not say under a name that is known.
    """
    args = text_model(model).args
    found = next((getattr(args, name) for name in WIDTHS if hasattr(args, name)), None)
    if found is None:
        kind = getattr(args, "model_type", type(args).__module__)
        raise ModelError(Problem(f"models of type `{kind}` are not supported: their width"))
    return int(found)


def max_positions(model: nn.Module) -> float:
    """Return how many tokens the model takes, by its own settings; infinity if they do not say."""
    known = getattr(text_model(model).args, "max_position_embeddings", None)
    return known or math.inf


class _Backbone:
    """Stands in for a backbone that has already run."""

    def __init__(self, backbone: nn.Module, hidden: mx.array) -> None:
        self._backbone, self._hidden = backbone, hidden

    def __call__(self, *_args: Any, **_kwargs: Any) -> mx.array:  # noqa: ANN401 - any model's call
        return self._hidden

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the model has
        return getattr(self._backbone, name)


class _WithBackbone:
    """Stands in for a model, so that its own head code runs on given hidden states."""

    def __init__(self, model: nn.Module, hidden: mx.array) -> None:
        self._model = model
        self.model = _Backbone(model.model, hidden)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the model has
        return getattr(self._model, name)


def head_logits(model: nn.Module, hidden: mx.array) -> mx.array:
    """Run the model's own output head on (n, dim) hidden states; returns (n, vocab) float32.

    The model class's `__call__` is used with a stand-in for its backbone, so tied embeddings, soft
    caps and logit scales are the model's own.
    """
    inner = text_model(model)
    stand_in = _WithBackbone(inner, hidden[None])
    logits: mx.array = type(inner).__call__(
        stand_in, mx.zeros((1, hidden.shape[0]), dtype=mx.int32)
    )
    return logits[0].astype(mx.float32)


def output_matrix(model: nn.Module) -> mx.array:
    """Return the output head as a matrix, (vocabulary, dim) float32: token directions.

    Found by running the head on small unit vectors, so that tied, quantised and scaled heads come
    out as they work, and soft caps are left behind where they change nothing.
    """
    unit = UNIT * mx.eye(hidden_size(model))
    matrix: mx.array = mx.contiguous((head_logits(model, unit) / UNIT).T)
    return matrix


def target_logps(model: nn.Module, hidden: mx.array, targets: mx.array) -> mx.array:
    """Return log p(target) for (n, dim) hidden states and (n,) targets: (n,) float32."""
    blocks = _in_blocks(lambda states, ids: [_block_logps(model, states, ids)], hidden, targets)
    return blocks[0]


def judged_targets(
    model: nn.Module, hidden: mx.array, targets: mx.array
) -> tuple[mx.array, mx.array]:
    """Return `target_logps` and whether each target is the likeliest token: (n,) float32, bool."""

    def judge(states: mx.array, ids: mx.array) -> list[mx.array]:
        logits = head_logits(model, states)
        return [_picked_logps(logits, ids), mx.argmax(logits, axis=-1) == ids]

    logps, is_greedy = _in_blocks(judge, hidden, targets)
    return logps, is_greedy


def trained_logps(model: nn.Module, hidden: mx.array, targets: mx.array) -> mx.array:
    """Return what `target_logps` does; its gradient to `hidden` needs no memory for logits."""
    return _with_slopes(partial(_block_logps, model), hidden, targets)


def trained_kl(model: nn.Module, hidden: mx.array, base: mx.array) -> mx.array:
    """Return KL(base || model) of the next-token distributions, (n,) float32, in nats.

    Args:
        model: its head turns states into logits.
        hidden: (n, dim) states; gradients flow to them without memory for logits.
        base: (n, dim) states of the untouched model at the same places; no gradient.
    """
    return _with_slopes(partial(_block_kl, model), hidden, base)


def moved_predictions(
    model: nn.Module, base: mx.array, targets: mx.array, states: Sequence[mx.array]
) -> tuple[mx.array, list[tuple[mx.array, mx.array]]]:
    """Return `target_logps` of the base, then for each of `states` the same, and KL(base || it).

    The base's distributions are made once for all of `states`. No gradients.

    Args:
        model: its head turns states into logits.
        base: (n, dim) states of the untouched model.
        targets: (n,) tokens that come next.
        states: any number of (n, dim) states of the model at the same places.

    Returns:
        Log-probabilities (n,) float32, and a pair of log-probabilities and KL in nats, both
        (n,) float32, for each of `states`; KL is exactly 0 where states equal the base's.
    """

    def compare(own: mx.array, ids: mx.array, *others: mx.array) -> list[mx.array]:
        reference = _log_softmax(head_logits(model, own))
        found = [_picked(reference, ids)]
        for other in others:
            logps = _log_softmax(head_logits(model, other))
            found += [_picked(logps, ids), _kl(reference, logps)]
        return found

    logps, *rest = _in_blocks(compare, base, targets, *states)
    return logps, list(zip(rest[::2], rest[1::2], strict=True))


def _with_slopes(
    function: Callable[[mx.array, mx.array], mx.array], hidden: mx.array, others: mx.array
) -> mx.array:
    """Apply a function of (states, others) to one value a state; keep slopes for the gradient.

    Each value depends on one state alone, so its slope there is found with it, block by block, and
    kept instead of the logits: (n, dim) values. The idea of gradients in the forward pass is Liger
    Kernel's (arXiv 2410.10989).
    """

    def values_and_slopes(states: mx.array, members: mx.array) -> list[mx.array]:
        values, slopes = mx.vjp(
            lambda block: function(block, members), [states], [mx.ones(len(members))]
        )
        return [values[0], slopes[0]]

    values, slopes = _in_blocks(values_and_slopes, mx.stop_gradient(hidden), others)
    # Adds zero, and carries the slope.
    step = ((hidden - mx.stop_gradient(hidden)) * mx.stop_gradient(slopes)).sum(axis=1)
    return mx.stop_gradient(values) + step.astype(mx.float32)


def _block_logps(model: nn.Module, hidden: mx.array, targets: mx.array) -> mx.array:
    return _picked_logps(head_logits(model, hidden), targets)


def _picked_logps(logits: mx.array, targets: mx.array) -> mx.array:
    return _picked(logits, targets) - logsumexp(logits)[:, 0]


def _picked(values: mx.array, targets: mx.array) -> mx.array:
    """Return the value of each row's target: (n,)."""
    return mx.take_along_axis(values, targets[:, None], axis=-1)[:, 0]


def _block_kl(model: nn.Module, hidden: mx.array, base: mx.array) -> mx.array:
    logps = _log_softmax(head_logits(model, hidden))
    return _kl(_log_softmax(head_logits(model, base)), logps)


def _kl(reference: mx.array, logps: mx.array) -> mx.array:
    """Return KL(reference || model) of each row of log-probabilities: (n,)."""
    # Tokens that both forbid, by -inf, must count for nothing instead of NaN.
    gaps = mx.where(mx.isinf(reference), 0.0, reference - logps)
    return (probabilities(reference) * gaps).sum(axis=1)


def _log_softmax(logits: mx.array) -> mx.array:
    return logits - logsumexp(logits)


def _in_blocks(compute: Callable[..., list[mx.array]], *arrays: mx.array) -> list[mx.array]:
    """Apply a function of rows to `BLOCK_ROWS` rows after another; join its outputs."""
    blocks: list[list[mx.array]] = []
    for start in range(0, len(arrays[0]), BLOCK_ROWS):
        first, *others = (array[start : start + BLOCK_ROWS] for array in arrays)
        if blocks:  # else mlx runs all blocks side by side, with the logits of all alive at once
            (first,) = mx.depends([first], blocks[-1])
        blocks.append(compute(first, *others))
    return [mx.concatenate(list(parts)) for parts in zip(*blocks, strict=True)]
