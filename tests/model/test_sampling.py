"""Draws against NumPy's arithmetic, and against the frequencies they must have."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sempa_mlx.model.sampling import GREEDY, draw_from

SIZE = 9
LOGITS = np.array([0.3, 2.0, -1.0, 1.2, 1.9, -3.0, 0.0, 0.31, -0.5], dtype=np.float64)


def logprobs(logits=LOGITS):
    return logits - np.log(np.exp(logits).sum())


def expected(temperature, top_p):
    """Probabilities by the definition: the fewest likeliest tokens with this mass, tempered."""
    probabilities = np.exp(logprobs())
    kept, mass = [], 0.0
    for token in np.argsort(-probabilities):
        if mass < top_p:
            kept.append(token)
            mass += probabilities[token]
    weights = np.zeros(SIZE)
    weights[kept] = probabilities[kept] ** (1 / temperature)
    return weights / weights.sum()


def drawn(draw, count, logits=LOGITS):
    row = mx.array(logprobs(logits)[None].astype(np.float32))
    return [int(draw(row).item()) for _ in range(count)]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_p", [0.2, 0.5, 0.8, 0.99, 1.0])
def test_draws_have_the_frequencies_of_the_definition(temperature, top_p):
    count = 4000
    shares = expected(temperature, top_p)
    found = np.bincount(drawn(draw_from(11, temperature, top_p), count), minlength=SIZE) / count
    assert found[shares == 0].sum() == 0
    np.testing.assert_allclose(found, shares, atol=4.5 * np.sqrt(0.25 / count))


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (1.3, 1.0)])
def test_each_draw_is_where_its_random_number_falls(temperature, top_p):
    random = np.random.default_rng(5)
    sums = np.cumsum(expected(temperature, top_p))
    wanted = [int(np.argmax(sums > random.random())) for _ in range(200)]
    assert drawn(draw_from(5, temperature, top_p), 200) == wanted


@given(st.integers(0, 2**63 - 1))
def test_a_seed_gives_its_draws_again(seed):
    first = drawn(draw_from(seed, 1.5, 0.95), 8)
    assert drawn(draw_from(seed, 1.5, 0.95), 8) == first


def test_seeds_differ():
    assert len({tuple(drawn(draw_from(seed, 1.0, 1.0), 12)) for seed in range(8)}) == 8


def test_the_least_of_either_is_greedy():
    assert draw_from(1, 0.0, 0.9) is GREEDY
    assert draw_from(1, 0.8, 0.0) is GREEDY
    best = int(np.argmax(LOGITS))
    assert {*drawn(draw_from(1, 1e-4, 1.0), 20)} == {best}
    assert {*drawn(draw_from(1, 2.0, 1e-9), 20)} == {best}


def test_any_precision_can_be_drawn_from():
    row = mx.array(logprobs()[None]).astype(mx.bfloat16)
    token = draw_from(3, 0.8, 0.9)(row)
    assert (token.shape, token.dtype) == ((1,), mx.uint32)


def test_a_token_that_cannot_come_never_comes():
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf])
    assert {*drawn(draw_from(2, 1.0, 1.0), 50, logits)} == {1, 3}


def test_a_temperature_that_float32_cannot_divide_by_is_none():
    assert draw_from(1, 1e-46, 1.0) is GREEDY
