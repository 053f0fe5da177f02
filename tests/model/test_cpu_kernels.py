import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import activations
from scipy import special

from sempa_mlx.model.cpu_kernels import logsumexp, probabilities, swiglu

GATES = np.concatenate(
    [
        np.linspace(-100, 100, 20_001),
        np.linspace(-1, 1, 2001),
        [-88.73, -88.0, -87.4, -87.3, 0.0, 1e-30, -1e-30, 1e-8, 87.3, 88.8],
    ]
).astype(np.float32)
VALUES = np.random.default_rng(0).normal(size=GATES.shape).astype(np.float32) * 3
SMALLEST = 2.0**-126  # exp is held at 2^126 and above: what lies beyond counts as zero


def exact(gate, x):
    """SwiGLU and its slopes in float64."""
    gate, x = gate.astype(np.float64), x.astype(np.float64)
    sigmoid = np.exp(-np.logaddexp(0, -gate))
    # 1 - sigmoid loses everything for large gates; its mirror image does not.
    slope = sigmoid * (1 + gate * np.exp(-np.logaddexp(0, gate)))
    return gate * sigmoid * x, x * slope, gate * sigmoid


def gradients(function, *inputs, cotangent):
    _, found = mx.vjp(function, list(map(mx.array, inputs)), [mx.array(cotangent)])
    return [np.array(part) for part in found]


def within_rounding(found, expected):
    """Compare up to rounding; that of the exponent gate / ln 2 grows with the gate."""
    allowed = (4e-7 + 1e-7 * np.abs(GATES)) * np.abs(expected) + 2e3 * SMALLEST
    worst = np.argmax(np.abs(found - expected) - allowed)
    assert np.abs(found - expected)[worst] <= allowed[worst], (GATES[worst], VALUES[worst])


def test_values_are_exact_to_float32():
    found = np.array(swiglu(mx.array(GATES), mx.array(VALUES)))
    assert found.dtype == np.float32
    within_rounding(found, exact(GATES, VALUES)[0])


def test_gradients_are_exact_to_float32():
    cotangent = np.random.default_rng(1).normal(size=GATES.shape).astype(np.float32)
    _, by_gate, by_x = exact(GATES, VALUES)
    found_gate, found_x = gradients(swiglu, GATES, VALUES, cotangent=cotangent)
    within_rounding(found_x, cotangent * by_x)
    # The slope crosses zero near -1.28, where only the absolute error is small.
    np.testing.assert_allclose(found_gate, cotangent * by_gate, rtol=2e-6, atol=1e-6)


def test_it_agrees_with_mlx_lm():
    inside = np.abs(GATES) < 80
    gate, x = GATES[inside], VALUES[inside]
    ours, theirs = (
        np.array(function(mx.array(gate), mx.array(x))) for function in (swiglu, activations.swiglu)
    )
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-30)
    cotangent = np.ones_like(gate)
    for our, their in zip(
        gradients(swiglu, gate, x, cotangent=cotangent),
        gradients(activations.swiglu, gate, x, cotangent=cotangent),
        strict=True,
    ):
        np.testing.assert_allclose(our, their, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 5), (2, 3, 4, 5)])
def test_any_shape(shape):
    rng = np.random.default_rng(2)
    gate, x = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    found = np.array(swiglu(mx.array(gate), mx.array(x)))
    assert found.shape == shape
    np.testing.assert_allclose(found, exact(gate, x)[0], rtol=1e-5, atol=1e-7)


def test_bad_numbers_are_not_hidden():
    """A guard against divergence must still see them."""
    one = mx.array([1.0])
    assert np.isnan(swiglu(mx.array([np.nan]), one).item())
    assert np.isnan(swiglu(one, mx.array([np.nan])).item())
    assert swiglu(mx.array([np.inf]), one).item() == np.inf


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_half_precision_is_computed_by_mlx_lm(dtype):
    gate, x = (mx.array(part[::10]).astype(dtype) for part in (GATES, VALUES))
    found, expected = (function(gate, x) for function in (swiglu, activations.swiglu))
    assert found.dtype == dtype
    assert mx.array_equal(found, expected, equal_nan=True)


# Log-sum-exp


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 7), (40, 50_000), (3, 49_152)])
def test_logsumexp_equals_scipy(rows, size):
    logits = (np.random.default_rng(2).normal(size=(rows, size)) * 20).astype(np.float32)
    found = np.array(logsumexp(mx.array(logits)))
    expected = special.logsumexp(logits.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_slopes_of_logsumexp_are_the_softmax():
    logits = (np.random.default_rng(3).normal(size=(40, 50_000)) * 3).astype(np.float32)
    cotangent = np.random.default_rng(4).normal(size=(40, 1)).astype(np.float32)
    (found,) = gradients(logsumexp, logits, cotangent=cotangent)
    expected = special.softmax(logits.astype(np.float64), axis=1) * cotangent
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-12)


def test_logsumexp_forbids_tokens_and_tells_nan():
    logits = np.array([[0.0, -np.inf, 1.0], [np.nan, 0.0, 1.0], [1e4, -1e4, 0.0]], np.float32)
    found = np.array(logsumexp(mx.array(logits)))[:, 0]
    np.testing.assert_allclose(found, [np.log(1 + np.e), np.nan, 1e4], rtol=1e-6)
    (slopes,) = gradients(logsumexp, logits, cotangent=np.ones((3, 1), np.float32))
    np.testing.assert_allclose(slopes[0], special.softmax([0.0, -np.inf, 1.0]), atol=1e-6)
    assert np.isnan(slopes[1]).all()


def test_logsumexp_in_half_precision_is_mlx_own():
    logits = mx.array([[1.0, 2.0, 3.0]], dtype=mx.float16)
    assert mx.array_equal(logsumexp(logits), mx.logsumexp(logits, axis=-1, keepdims=True))


# Probabilities


def test_probabilities_equal_numpy():
    logps = -np.abs(np.random.default_rng(5).normal(size=(40, 50_000)) * 10).astype(np.float32)
    found = np.array(probabilities(mx.array(logps)))
    np.testing.assert_allclose(found, np.exp(logps.astype(np.float64)), rtol=1e-5)


def test_forbidden_tokens_have_no_probability_and_nan_shows():
    found = np.array(probabilities(mx.array([[-np.inf, 0.0, np.nan]])))[0]
    assert 0 <= found[0] < 1e-37
    assert found[1] == 1
    assert np.isnan(found[2])


def test_probabilities_in_half_precision_are_mlx_own():
    logps = mx.array([[-1.0, -2.0]], dtype=mx.float16)
    assert mx.array_equal(probabilities(logps), mx.exp(logps))
