import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.encoder.batch import pool

STATES = mx.array(
    [
        [[1.0, 2.0], [3.0, 6.0], [8.0, 1.0]],
        [[4.0, 0.0], [2.0, 2.0], [9.0, 9.0]],  # the third is a pad
    ]
)
LENGTHS = mx.array([3, 2])
BY_HAND = {
    "last": [[8, 1], [2, 2]],
    "mean": [[(1 + 3 + 8) / 3, (2 + 6 + 1) / 3], [(4 + 2) / 2, (0 + 2) / 2]],
    "weighted-mean": [
        [(1 * 1 + 2 * 3 + 3 * 8) / 6, (1 * 2 + 2 * 6 + 3 * 1) / 6],
        [(1 * 4 + 2 * 2) / 3, (1 * 0 + 2 * 2) / 3],
    ],
}


@pytest.mark.parametrize("pooling", BY_HAND)
def test_pooling_by_hand(pooling):
    np.testing.assert_allclose(
        np.array(pool(STATES, LENGTHS, pooling)), BY_HAND[pooling], rtol=1e-6
    )


@pytest.mark.parametrize("pooling", BY_HAND)
@pytest.mark.parametrize("rubbish", [1e30, float("nan"), float("inf")])
def test_pads_do_not_matter_whatever_they_hold(pooling, rubbish):
    real = mx.array([[[True], [True], [True]], [[True], [True], [False]]])
    spoilt = mx.where(real, STATES, rubbish)
    np.testing.assert_allclose(
        np.array(pool(spoilt, LENGTHS, pooling)), BY_HAND[pooling], rtol=1e-6
    )


@pytest.mark.parametrize("pooling", BY_HAND)
def test_half_precision_states_give_float32_vectors(pooling):
    """Sums are taken in float32: 300 states of 1 and 2 in turn have the mean 1.5 exactly."""
    states = mx.array([[[1.0], [2.0]] * 150]).astype(mx.bfloat16)
    pooled = pool(states, mx.array([300]), pooling)
    assert pooled.dtype == mx.float32
    weighted = (sum(range(1, 301, 2)) + 2 * sum(range(2, 301, 2))) / sum(range(1, 301))
    expected = {"last": 2.0, "mean": 1.5, "weighted-mean": weighted}[pooling]
    assert pooled.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("mean", [[5.5, 3.5], [2, 2]]), ("weighted-mean", [[19 / 3, 8 / 3], [2, 2]])],
)
def test_what_stands_before_the_start_does_not_count(pooling, expected):
    """Tokens 2 and 3 of the first row, token 2 of the second."""
    found = pool(STATES, LENGTHS, pooling, mx.array([1, 1]))
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-6)
