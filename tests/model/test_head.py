from functools import cache, partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from sempa_mlx.model import head
from sempa_mlx.model.head import (
    head_logits,
    moved_predictions,
    target_logps,
    text_model,
    trained_kl,
    trained_logps,
)
from tests.tiny import MISFITS, SHARING, VOCABULARY, tiny_model

DIM = 32
CAP = 3.0  # of the tiny Gemma 2's logits
model_of = cache(tiny_model)
KINDS = ["llama", "llama-untied", "qwen3", "gemma2"]  # tied, untied, tied on demand, soft-capped


@pytest.fixture
def blocks_of_three(monkeypatch):
    monkeypatch.setattr(head, "BLOCK_ROWS", 3)


def states_and_targets(count, seed=0, dtype=mx.float32, vocabulary=VOCABULARY):
    rng = np.random.default_rng(seed)
    hidden = mx.array(rng.normal(size=(count, DIM)).astype(np.float32)).astype(dtype)
    return hidden, mx.array(rng.integers(0, vocabulary, count).astype(np.int32))


# Logits


@pytest.mark.parametrize("kind", [*SHARING, *MISFITS])
def test_head_logits_are_the_models_own(kind):
    model = model_of(kind)
    row = mx.array([[5, 9, 17, 33, 2, 2, 90, 127]])
    found = np.array(head_logits(model, text_model(model).model(row)[0]))
    assert found.shape == (8, VOCABULARY)
    np.testing.assert_allclose(found, np.array(model(row)[0]), atol=1e-5, rtol=0)


def test_the_soft_cap_of_the_head_is_kept():
    logits = head_logits(model_of("gemma2"), 100 * mx.ones((2, DIM)))
    assert 0.9 * CAP < mx.abs(logits).max().item() <= CAP


def test_head_logits_are_float32_for_a_half_precision_model():
    model = tiny_model("llama")
    model.set_dtype(mx.bfloat16)
    assert head_logits(model, mx.ones((2, DIM), dtype=mx.bfloat16)).dtype == mx.float32


# Log-probabilities and their slopes


def exact(kind, hidden, targets):
    """Log-probabilities and slopes by the head's weights, in float64."""
    model = model_of(kind)
    table = model.lm_head if kind == "llama-untied" else model.model.embed_tokens
    weight, states = np.array(table.weight, np.float64), np.array(hidden, np.float64)
    logits = states @ weight.T
    bend = np.ones_like(logits)
    if kind == "gemma2":
        logits = CAP * np.tanh(logits / CAP)
        bend = 1 - (logits / CAP) ** 2
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    places = np.arange(len(states)), np.array(targets)
    hits = np.zeros_like(logits)
    hits[places] = 1
    return np.log(shares[places]), ((hits - shares) * bend) @ weight


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 11])
@pytest.mark.parametrize("logps_of", [target_logps, trained_logps])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_exact_over_any_number_of_blocks(
    kind, logps_of, count, blocks_of_three
):
    hidden, targets = states_and_targets(count)
    values, slopes = exact(kind, hidden, targets)
    cotangent = np.random.default_rng(1).normal(size=count).astype(np.float32)
    found, (gradient,) = mx.vjp(
        lambda states: logps_of(model_of(kind), states, targets), [hidden], [mx.array(cotangent)]
    )
    assert found[0].shape == (count,)
    assert found[0].dtype == mx.float32
    np.testing.assert_allclose(np.array(found[0]), values, rtol=1e-5, atol=1e-5)
    expected = cotangent[:, None] * slopes
    np.testing.assert_allclose(np.array(gradient), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_on_what_comes_before_and_after_the_head(kind, blocks_of_three):
    """In training the states depend on an adapter, and the loss bends the log-probabilities."""
    hidden, targets = states_and_targets(8, seed=2)
    adapter = mx.eye(DIM) * 0.7

    def loss(adapter, logps_of):
        logps = logps_of(model_of(kind), mx.tanh(hidden @ adapter), targets)
        return mx.logaddexp(logps[:4] - logps[4:], 0.0).sum()

    def full_logits(model, states, targets):
        logits = head_logits(model, states)
        logps = logits - mx.logsumexp(logits, axis=1, keepdims=True)
        return logps[mx.arange(len(targets)), targets]

    expected, slope = mx.value_and_grad(lambda a: loss(a, full_logits))(adapter)
    for logps_of in (target_logps, trained_logps):
        found = mx.value_and_grad(lambda a, f=logps_of: loss(a, f))(adapter)
        assert found[0].item() == pytest.approx(expected.item(), rel=1e-5)
        error = mx.linalg.norm(found[1] - slope) / mx.linalg.norm(slope)
        assert error.item() <= 1e-5


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_half_precision_has_the_gradients_of_plain_autograd(kind, blocks_of_three):
    model = tiny_model(kind)
    model.set_dtype(mx.bfloat16)
    hidden, targets = states_and_targets(7, dtype=mx.bfloat16)
    weights = mx.cos(mx.arange(7))

    def results(logps_of):
        return mx.value_and_grad(lambda states: (logps_of(model, states, targets) * weights).sum())(
            hidden
        )

    (expected, plain), (value, gradient) = results(target_logps), results(trained_logps)
    assert value.item() == expected.item()
    assert gradient.dtype == hidden.dtype
    plain, gradient = plain.astype(mx.float32), gradient.astype(mx.float32)
    assert (mx.linalg.norm(gradient - plain) / mx.linalg.norm(plain)).item() < 1e-2


def test_without_a_gradient_both_ways_give_the_same_numbers(blocks_of_three):
    hidden, targets = states_and_targets(8)
    for kind in KINDS:
        found = [
            np.array(f(model_of(kind), hidden, targets)) for f in (target_logps, trained_logps)
        ]
        np.testing.assert_array_equal(found[0], found[1])


def test_bad_numbers_are_not_hidden():
    hidden, targets = states_and_targets(3)
    hidden[1, 4] = float("nan")
    logps = np.array(trained_logps(model_of("llama"), hidden, targets))
    np.testing.assert_array_equal(np.isnan(logps), [False, True, False])


@pytest.mark.parametrize("logps_of", [target_logps, trained_logps])
def test_logps_of_all_targets_are_a_distribution(logps_of):
    hidden = mx.repeat(states_and_targets(1, seed=3)[0], VOCABULARY, axis=0)
    logps = logps_of(model_of("gemma2"), hidden, mx.arange(VOCABULARY))
    assert mx.exp(logps).sum().item() == pytest.approx(1.0, abs=1e-5)


class Banning:
    """A head that forbids some tokens, as `-inf`."""

    def __init__(self, inner, banned):
        self._inner = inner
        self._ban = mx.zeros(VOCABULARY).at[mx.array(banned)].add(-mx.inf)

    def __call__(self, states):
        return self._inner(states) + self._ban


def test_forbidden_tokens_have_no_share(monkeypatch, blocks_of_three):
    banned = [0, 5, 127]
    model = tiny_model("llama-untied")
    hidden, _ = states_and_targets(4)
    targets = mx.array([1, 2, 126, 5])  # the last one is forbidden itself
    logits = np.array(head_logits(model, hidden), np.float64)
    allowed = np.delete(logits, banned, axis=1)
    expected = logits[np.arange(4), np.array(targets)] - np.log(np.exp(allowed).sum(axis=1))
    expected[3] = -np.inf
    model.lm_head = Banning(model.lm_head, banned)
    slopes = mx.grad(lambda states: trained_logps(model, states, targets)[:3].sum())(hidden)
    np.testing.assert_allclose(
        np.array(trained_logps(model, hidden, targets)), expected, rtol=1e-5, atol=1e-5
    )
    assert np.isfinite(np.array(slopes)).all()


# Divergence from the base


def exact_kl(model, hidden, base):
    """By scipy, in float64, from the logits of the model's own head."""
    ours, theirs = (
        special.softmax(np.array(head_logits(model, states), np.float64), axis=1)
        for states in (hidden, base)
    )
    return special.rel_entr(theirs, ours).sum(axis=1)


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_kl_and_its_gradient_are_exact_over_any_number_of_blocks(kind, count, blocks_of_three):
    model = model_of(kind)
    (hidden, _), (base, _) = states_and_targets(count), states_and_targets(count, seed=1)
    weights = mx.cos(mx.arange(count))

    def by_full_logits(states):
        ours, theirs = (nn.log_softmax(head_logits(model, part)) for part in (states, base))
        return ((mx.exp(theirs) * (theirs - ours)).sum(axis=1) * weights).sum()

    found = trained_kl(model, hidden, base)
    np.testing.assert_allclose(np.array(found), exact_kl(model, hidden, base), rtol=1e-4, atol=1e-6)
    slope = mx.grad(lambda states: (trained_kl(model, states, base) * weights).sum())(hidden)
    expected = mx.grad(by_full_logits)(hidden)
    assert (mx.linalg.norm(slope - expected) / mx.linalg.norm(expected)).item() <= 1e-5


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_beside_the_base_are_those_of_each_alone(kind, count, blocks_of_three):
    model = model_of(kind)
    (base, targets), *others = (states_and_targets(count, seed=seed) for seed in range(3))
    states = [base, *(hidden for hidden, _ in others)]
    logps, moved = moved_predictions(model, base, targets, states)
    np.testing.assert_array_equal(np.array(logps), np.array(target_logps(model, base, targets)))
    for hidden, (own, kl) in zip(states, moved, strict=True):
        alone = target_logps(model, hidden, targets)
        np.testing.assert_array_equal(np.array(own), np.array(alone))
        np.testing.assert_array_equal(np.array(kl), np.array(trained_kl(model, hidden, base)))
    assert (np.array(moved[0][1]) == 0).all()
    assert (np.array(moved[1][1]) > 0).all()


def test_the_base_alone_is_scored_too(blocks_of_three):
    hidden, targets = states_and_targets(5)
    logps, moved = moved_predictions(model_of("llama"), hidden, targets, [])
    assert moved == []
    np.testing.assert_allclose(
        np.array(logps), np.array(target_logps(model_of("llama"), hidden, targets))
    )


def test_kl_of_equal_states_is_zero_and_flat(blocks_of_three):
    hidden, _ = states_and_targets(5)
    (values,), (slope,) = mx.vjp(
        lambda states: trained_kl(model_of("gemma2"), states, hidden), [hidden], [mx.ones(5)]
    )
    assert (np.array(values) == 0).all()
    np.testing.assert_allclose(np.array(slope), 0, atol=1e-5)


def test_forbidden_tokens_add_nothing_to_the_kl(blocks_of_three):
    model = tiny_model("llama-untied")
    model.lm_head = Banning(model.lm_head, [0, 5, 127])
    (hidden, _), (base, _) = states_and_targets(4), states_and_targets(4, seed=1)
    found = np.array(trained_kl(model, hidden, base))
    np.testing.assert_allclose(found, exact_kl(model, hidden, base), rtol=1e-4)
    slope = mx.grad(lambda states: trained_kl(model, states, base).sum())(hidden)
    assert np.isfinite(np.array(slope)).all()


# Blocks


@settings(max_examples=30, deadline=None, derandomize=True)
@given(count=st.integers(1, 20), size=st.integers(1, 8))
def test_blocks_hold_every_row_once_and_never_too_many(count, size):
    lengths = []

    def compute(numbers, names):
        lengths.append(len(numbers))
        return [numbers * 2, names + 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "BLOCK_ROWS", size)
        doubled, raised = head._in_blocks(compute, mx.arange(count), mx.arange(count) * 10)
    assert sum(lengths) == count
    assert set(lengths[:-1]) <= {size}
    assert lengths[-1] <= size
    np.testing.assert_array_equal(np.array(doubled), 2 * np.arange(count))
    np.testing.assert_array_equal(np.array(raised), 10 * np.arange(count) + 1)


# Memory

LARGE, FEW_ROWS = 8192, 16


@pytest.fixture
def large(monkeypatch):
    """A model of many tokens with small blocks, where nothing else decides what is allocated."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    monkeypatch.setattr(head, "BLOCK_ROWS", FEW_ROWS)
    yield tiny_model("llama", vocab_size=LARGE)
    mx.set_default_device(device)


def peak_bytes(count, values_of, others):
    """The most memory that a gradient to `count` states adds while it is computed."""
    hidden, _ = states_and_targets(count)
    slope = mx.grad(lambda states: values_of(states, others).sum())
    mx.eval(values_of(hidden, others))
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(slope(hidden))
    return mx.get_peak_memory() - before


def test_no_array_of_all_states_and_the_whole_vocabulary_is_made(large):
    def full_logits(states, targets):
        logits = head_logits(large, states)
        return mx.take_along_axis(logits, targets[:, None], 1)[:, 0] - mx.logsumexp(logits, axis=1)

    count = 64 * FEW_ROWS
    one_array = count * LARGE * 4
    _, targets = states_and_targets(count, vocabulary=LARGE)
    assert peak_bytes(count, full_logits, targets) > 2 * one_array
    assert peak_bytes(count, partial(trained_logps, large), targets) < 0.4 * one_array


@pytest.mark.parametrize("values_of", [trained_logps, trained_kl])
def test_memory_does_not_grow_with_the_number_of_blocks(values_of, large):
    few, many = (
        peak_bytes(
            blocks * FEW_ROWS,
            partial(values_of, large),
            states_and_targets(blocks * FEW_ROWS)[values_of is trained_logps],
        )
        for blocks in (8, 64)
    )
    states = 64 * FEW_ROWS * DIM * 4
    assert many < 1.2 * few + 4 * states
