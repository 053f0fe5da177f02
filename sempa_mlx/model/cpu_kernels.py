"""Faster exponentials for mlx's CPU backend.

On x86 mlx 0.32 calls the scalar `exp` for every element, 12 to 20 ns each: SwiGLU then takes 40 %
of a small model's forward pass, and log-sum-exp nearly as long as the output head. Written as a
polynomial, the same function is vectorised by `mx.compile` and takes a fifth of that, as long as
its arrays stay in the cache. Values agree with mlx's own to float32 rounding, about 1e-7.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import mlx.core as mx
from mlx_lm.models import activations

from sempa_mlx import runtime
from sempa_mlx.model.fused import stays_fused

LOG2_E = 1.4426950408889634
# Taylor coefficients of 2^f = exp(f ln 2); on |f| <= 1/2 the rest is below float32's half ulp.
POWERS_OF_LN2 = (
    1.0,
    0.6931471805599453,
    0.2402265069591007,
    0.05550410866482158,
    0.009618129107628477,
    0.0013333558146428443,
    0.00015403530393381608,
)
ROUNDER = 1.5 * 2.0**23  # adding and subtracting it rounds a float32 to the nearest integer
FARTHEST = 87.0  # exp(-87) is nearly 2^-126, the least float32 of full precision
CACHED_ELEMENTS = 2**16  # 256 KiB of float32; several such arrays fit into a core's cache


def by_row_blocks(function: Callable[..., Sequence[mx.array]], *arrays: mx.array) -> list[mx.array]:
    """Compute functions of rows a few rows at a time, so that all arrays of a block stay cached.

    Args:
        function: from blocks of the arrays' rows to as many rows of each result.
        arrays: (rows, width) each; the first one's width decides how many rows a block has.

    Returns:
        The results for all rows.
    """
    size = max(1, CACHED_ELEMENTS // arrays[0].shape[1])
    done: list[Sequence[mx.array]] = []
    for start in range(0, len(arrays[0]), size):
        block = [array[start : start + size] for array in arrays]
        if done:
            # mlx would compute the first step of every block before the second of any: by then the
            # first block has left the cache.
            block[:1] = mx.depends(block[:1], done[-1][:1])
        done.append(function(*block))
    return [mx.concatenate(list(parts)) for parts in zip(*done, strict=True)]


@partial(mx.compile, shapeless=True)
def _exp_parts(x: mx.array) -> list[mx.array]:
    """Split exp(-x), |x| <= FARTHEST, into 2^f, |f| <= 1/2, and the bits of the float32 2^n."""
    exponent = x * -LOG2_E
    whole = (exponent + ROUNDER) - ROUNDER
    power = _power_of_two(exponent - whole)
    return [power, (whole.astype(mx.int32) + 127) * (1 << 23)]


def _power_of_two(f: mx.array) -> mx.array:
    """Return 2^f in few steps that wait for each other: `mx.compile` fuses no more than eleven."""
    c0, c1, c2, c3, c4, c5, c6 = POWERS_OF_LN2
    square = f * f
    high = (c6 * square + (c5 * f + c4)) * (square * square)
    return high + ((c3 * f + c2) * square + (c1 * f + c0))


def _exp_factors(x: mx.array) -> tuple[mx.array, mx.array]:
    """Return two float32 factors of exp(-x), |x| <= FARTHEST; bounding is left to who needs it."""
    # A bound takes as long as half the polynomial, for its test for NaN.
    power, bits = _exp_parts(x)
    # Reinterpreting bits is the one step that a shape-independent compiled function cannot hold.
    return power, bits.view(mx.float32)


@partial(mx.compile, shapeless=True)
def _product(left: mx.array, right: mx.array) -> mx.array:
    return left * right


def exp_negative(x: mx.array, bound: float = FARTHEST) -> mx.array:
    """Return exp(-x) of float32 values above -87; beyond `bound`, at most 87, it falls no more."""
    return _product(*_exp_factors(mx.minimum(x, bound)))


@partial(mx.compile, shapeless=True)
def _gated(
    gate: mx.array, x: mx.array, size: mx.array, power: mx.array, scale: mx.array
) -> mx.array:
    """Return silu(gate) * x, where power * scale is exp(-size) and size is |gate|, bounded."""
    exp = power * scale
    return (0.5 * (gate + mx.abs(gate)) - size * exp / (1.0 + exp)) * x


@partial(mx.compile, shapeless=True)
def _gated_gradients(
    gate: mx.array, x: mx.array, power: mx.array, scale: mx.array, cotangent: mx.array
) -> list[mx.array]:
    sigmoid = 1.0 / (1.0 + power * scale)
    slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    return [cotangent * x * slope, cotangent * gate * sigmoid]


@partial(mx.compile, shapeless=True)
def _size(gate: mx.array) -> mx.array:
    return mx.minimum(mx.abs(gate), FARTHEST)


@mx.custom_function
@stays_fused
def _swiglu_float32(gate: mx.array, x: mx.array) -> mx.array:
    """Return silu(gate) * x of two (rows, width) arrays."""

    def block(gate: mx.array, x: mx.array) -> list[mx.array]:
        size = _size(gate)
        return [_gated(gate, x, size, *_exp_factors(size))]

    return by_row_blocks(block, gate, x)[0]


@_swiglu_float32.vjp
@stays_fused
def _swiglu_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _output: mx.array
) -> tuple[mx.array, ...]:
    def block(gate: mx.array, x: mx.array, cotangent: mx.array) -> list[mx.array]:
        factors = _exp_factors(mx.clip(gate, -FARTHEST, FARTHEST))
        return _gated_gradients(gate, x, *factors, cotangent)

    return tuple(by_row_blocks(block, *primals, cotangent))


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """Return silu(gate) * x for arrays of one shape, fast in float32.

    Models of other precisions that share a patched module get mlx-lm's own function: rounding by
    addition needs float32.
    """
    if not (gate.dtype == x.dtype == mx.float32) or gate.size == 0:
        return cast("mx.array", activations.swiglu(gate, x))
    flat = (-1, gate.shape[-1] if gate.ndim else 1)
    rows = cast("mx.array", _swiglu_float32(gate.reshape(flat), x.reshape(flat)))
    return rows.reshape(gate.shape)


@mx.custom_function
@stays_fused
def _logsumexp_float32(logits: mx.array) -> mx.array:
    # mlx adds up a row from left to right and is off by 1e-4 for 50,000 values; a product is not.
    ones = mx.ones((logits.shape[1], 1))

    def block(logits: mx.array) -> list[mx.array]:
        largest = logits.max(axis=-1, keepdims=True)
        return [mx.log(exp_negative(largest - logits) @ ones) + largest]

    return by_row_blocks(block, logits)[0]


@_logsumexp_float32.vjp
@stays_fused
def _logsumexp_vjp(logits: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    def block(logits: mx.array, cotangent: mx.array, output: mx.array) -> list[mx.array]:
        return [exp_negative(output - logits) * cotangent]

    return by_row_blocks(block, logits, cotangent, output)[0]


def logsumexp(logits: mx.array) -> mx.array:
    """Return log(sum(exp(logits))) over the last axis of (n, vocabulary) values, as (n, 1).

    Fast on a CPU in float32, and exact to 1e-5 there; elsewhere it is mlx's own.
    """
    is_fast = logits.dtype == mx.float32 and not runtime.is_gpu()
    if not is_fast:
        return mx.logsumexp(logits, axis=-1, keepdims=True)
    return cast("mx.array", _logsumexp_float32(logits))


@stays_fused
def probabilities(logps: mx.array) -> mx.array:
    """Return exp of (n, vocabulary) log-probabilities, fast on a CPU in float32.

    Values below exp(-87) are left at that. No gradient flows through it.
    """
    if logps.dtype != mx.float32 or runtime.is_gpu():
        return mx.exp(mx.stop_gradient(logps))
    return by_row_blocks(lambda rows: [exp_negative(-rows)], mx.stop_gradient(logps))[0]
