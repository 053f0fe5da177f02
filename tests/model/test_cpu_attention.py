import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import base
from mlx_lm.models.cache import QuantizedKVCache
from scipy import special

from sempa_mlx import runtime
from sempa_mlx.model import cpu_attention
from sempa_mlx.model.cpu_attention import attention
from sempa_mlx.model.fused import differentiating

RNG = np.random.default_rng(0)
SCALE = 0.3


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(runtime, "is_gpu", lambda: False)


def inputs(rows=2, heads=4, groups=2, length=5, keys=9, dim=8, values=8):
    shapes = [(rows, heads, length, dim), (rows, groups, keys, dim), (rows, groups, keys, values)]
    return [mx.array(RNG.normal(size=shape).astype(np.float32)) for shape in shapes]


def exact(queries, keys, values, visible=None, added=0.0):
    """Attention in float64, head by head."""
    queries, keys, values = (np.array(part).astype(np.float64) for part in (queries, keys, values))
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (np.repeat(part, groups, axis=1) for part in (keys, values))
    scores = SCALE * queries @ keys.swapaxes(-1, -2) + added
    if visible is not None:
        scores = np.where(visible, scores, -np.inf)
    return special.softmax(scores, axis=-1) @ values


def causal(length, keys):
    return np.tril(np.ones((length, keys), dtype=bool), k=keys - length)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("length", "keys"), [(2, 2), (5, 9), (64, 64), (65, 70), (130, 130)])
def test_causal_attention_is_exact(groups, length, keys):
    parts = inputs(groups=groups, length=length, keys=keys)
    found = attention(*parts, None, SCALE, "causal")
    expected = exact(*parts, visible=causal(length, keys))
    np.testing.assert_allclose(np.array(found), expected, atol=2e-6)


def test_without_a_mask_all_keys_are_seen():
    parts = inputs(values=3)
    found = attention(*parts, None, SCALE, None)
    np.testing.assert_allclose(np.array(found), exact(*parts), atol=2e-6)


def test_a_bool_mask_of_each_row():
    parts = inputs()
    visible = RNG.random((2, 1, 5, 9)) < 0.5
    visible[..., 0] = True
    found = attention(*parts, None, SCALE, mx.array(visible))
    np.testing.assert_allclose(np.array(found), exact(*parts, visible=visible), atol=2e-6)


@pytest.mark.parametrize("hidden", [-1e9, -np.inf])
def test_a_mask_that_is_added(hidden):
    parts = inputs()
    added = np.where(causal(5, 9), 0.0, hidden).astype(np.float32)
    found = attention(*parts, None, SCALE, mx.array(added))
    np.testing.assert_allclose(np.array(found), exact(*parts, added=added), atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(
    *(st.integers(1, 3), st.integers(1, 3), st.integers(2, 70), st.integers(0, 5)),
    st.floats(0.01, 100),
)
def test_it_is_mlx_lm_own(rows, groups, length, before, size):
    queries, keys, values = inputs(rows, 2 * groups, groups, length, before + length)
    arguments = (queries * size, keys, values, None, SCALE, "causal")
    expected = np.array(base.scaled_dot_product_attention(*arguments))
    np.testing.assert_allclose(np.array(attention(*arguments)), expected, atol=2e-5)


def test_hidden_keys_change_nothing():
    """Not even a bit, whatever they hold."""
    queries, keys, values = inputs()
    visible = mx.array(causal(5, 9)) & (mx.arange(9) < 6)
    found = attention(queries, keys, values, None, SCALE, visible)
    last = mx.where(mx.arange(9)[:, None] < 6, 1.0, -1e4)
    other = attention(queries, keys * last, values * last, None, SCALE, visible)
    assert mx.array_equal(found, other)


def test_nan_shows():
    queries, keys, values = inputs()
    queries[0, 1, 2, 3] = np.nan
    found = np.array(attention(queries, keys, values, None, SCALE, "causal"))
    assert np.isnan(found[0, 1, 2]).all()
    assert np.isnan(found).sum() == found.shape[-1]


# Gradients


def gradients(function, parts, cotangent):
    with differentiating():
        _, found = mx.vjp(function, parts, [cotangent])
    return [np.array(part) for part in found]


@pytest.mark.parametrize("kept", [1, 1000])
@pytest.mark.parametrize(("length", "keys"), [(5, 9), (70, 70)])
def test_gradients_are_mlx_lm_own(length, keys, kept, monkeypatch):
    """Also where the weights are computed again."""
    monkeypatch.setattr(cpu_attention, "KEPT_KEYS", kept)
    parts = inputs(length=length, keys=keys)
    cotangent = mx.array(RNG.normal(size=(2, 4, length, 8)).astype(np.float32))
    found, expected = (
        gradients(lambda *p, f=f: f(*p, None, SCALE, "causal"), parts, cotangent)
        for f in (attention, base.scaled_dot_product_attention)
    )
    for own, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-5)


def test_hidden_keys_get_no_gradient_to_speak_of():
    parts = inputs()
    visible = mx.array(causal(5, 9)) & (mx.arange(9) < 6)
    cotangent = mx.ones((2, 4, 5, 8))
    _, keys, values = gradients(lambda *p: attention(*p, None, SCALE, visible), parts, cotangent)
    assert np.abs(keys[:, :, 6:]).max() < 1e-25
    assert np.abs(values[:, :, 6:]).max() < 1e-25
    assert np.abs(keys[:, :, :6]).max() > 1e-2


# What is left to mlx-lm


@pytest.fixture
def left(monkeypatch):
    """Note which calls mlx-lm gets."""
    calls = []
    monkeypatch.setattr(base, "scaled_dot_product_attention", lambda *given: calls.append(given))
    return calls


def test_plain_attention_is_not_left_to_mlx_lm(left):
    attention(*inputs(), None, SCALE, "causal")
    assert not left


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_other_precisions_are_left_to_mlx_lm(dtype, left):
    attention(*(part.astype(dtype) for part in inputs()), None, SCALE, "causal")
    assert len(left) == 1


def test_single_queries_sinks_and_quantised_caches_are_left_to_mlx_lm(left):
    attention(*inputs(length=1), None, SCALE, None)
    attention(*inputs(), None, SCALE, "causal", sinks=mx.zeros(4))
    attention(*inputs(), QuantizedKVCache(), SCALE, "causal")
    assert len(left) == 3


def test_a_gpu_is_left_to_mlx_lm(left, monkeypatch):
    monkeypatch.setattr(runtime, "is_gpu", lambda: True)
    attention(*inputs(), None, SCALE, "causal")
    assert len(left) == 1
