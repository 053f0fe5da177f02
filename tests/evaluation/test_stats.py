import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from sempa_mlx.evaluation.stats import cosines, spearman

FEW = settings(max_examples=100, deadline=None, derandomize=True)
TIED = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])  # few values, so ties are the rule
NUMBER = st.floats(-1e6, 1e6, width=32)
PAIRS = st.lists(st.tuples(TIED, TIED | NUMBER), min_size=2, max_size=40)


def columns(pairs):
    return tuple(np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))


@FEW
@given(pairs=PAIRS)
def test_spearman_equals_scipy_ties_included(pairs):
    gold, predicted = columns(pairs)
    found = spearman(gold, predicted)
    if len(set(gold)) == 1 or len(set(predicted)) == 1:
        assert math.isnan(found)  # scipy warns as well
    else:
        assert found == pytest.approx(spearmanr(gold, predicted).statistic, abs=1e-12)
        assert -1 - 1e-12 <= found <= 1 + 1e-12


def test_spearman_by_hand():
    """Ranks 1 2 3 4 5 and 2 1 4 3 5: 1 - 6 (1 + 1 + 1 + 1) / (5 * 24) = 0.8."""
    found = spearman(np.array([1.0, 2, 3, 4, 5]), np.array([20.0, 10, 40, 30, 50]))
    assert found == pytest.approx(0.8)


def test_ties_share_their_ranks_by_hand():
    """Ranks 1.5 1.5 3 and 1 2 3: (1.5 / sqrt(1.5 * 2)) = 0.866."""
    assert spearman(np.array([1.0, 1, 2]), np.array([5.0, 6, 7])) == pytest.approx(math.sqrt(0.75))


@FEW
@given(pairs=PAIRS)
def test_only_the_order_counts(pairs):
    gold, predicted = columns(pairs)
    found = spearman(gold, predicted)
    # Powers of two keep every float as it is, so no tie is made or broken.
    grown = spearman(gold * 4 - 8, np.sign(predicted) * predicted**2)
    np.testing.assert_allclose(grown, found, atol=1e-12)
    np.testing.assert_allclose(spearman(gold, -predicted), -found, atol=1e-12)
    np.testing.assert_allclose(spearman(predicted, gold), found, atol=1e-12)


@pytest.mark.parametrize(
    ("gold", "predicted"),
    [([1, 2, 3], [5, 5, 5]), ([2, 2, 2], [1, 2, 3]), ([1], [1]), ([], []), ([1, 1], [1, 1])],
)
def test_where_it_is_undefined_it_is_nan(gold, predicted):
    assert math.isnan(spearman(np.array(gold), np.array(predicted)))


def test_sides_of_different_length_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        spearman(np.zeros(3), np.zeros(4))


def test_the_arguments_are_left_alone():
    gold, predicted = np.array([3.0, 1, 2]), np.array([1.0, 2, 3])
    spearman(gold, predicted)
    assert gold.tolist() == [3, 1, 2]
    assert predicted.tolist() == [1, 2, 3]


def test_cosines_by_hand():
    left = np.array([[1, 0], [1, 1], [3, 4], [2, 0]], dtype=np.float32)
    right = np.array([[0, 5], [1, 0], [6, 8], [-7, 0]], dtype=np.float32)
    np.testing.assert_allclose(cosines(left, right), [0, math.sqrt(0.5), 1, -1], atol=1e-12)


def test_a_zero_vector_has_the_cosine_0():
    left, right = np.zeros((2, 3), dtype=np.float32), np.ones((2, 3), dtype=np.float32)
    np.testing.assert_array_equal(cosines(left, right), [0, 0])


def test_cosines_are_taken_in_double_precision():
    """Two vectors a hair apart, which float32 sums cannot tell from equal ones."""
    left = np.array([[1, 1e-4]], dtype=np.float32)
    right = np.array([[1, 0]], dtype=np.float32)
    found = cosines(left, right)
    assert found.dtype == np.float64
    assert 1 - found[0] == pytest.approx(0.5e-8, rel=1e-3)
