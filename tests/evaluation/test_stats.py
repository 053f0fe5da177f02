import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, spearmanr, ttest_rel

from sempa_mlx.evaluation import stats
from sempa_mlx.evaluation.stats import (
    Estimate,
    bootstrap_spearman,
    cosines,
    mean_estimate,
    paired_difference,
    spearman,
)

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


def test_a_vector_that_is_not_finite_has_no_cosine():
    left = np.array([[np.nan, 1.0], [np.inf, 1.0], [0.0, 0.0], [3.0, 4.0]])
    right = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [3.0, 4.0]])
    found = cosines(left, right)
    np.testing.assert_array_equal(found, [np.nan, np.nan, 0, 1])
    assert np.isnan(spearman(np.arange(4.0), found))


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


def graded(seed, count, noise):
    """Scores with many ties and predictions with some, correlated."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 21, count) / 4
    return gold, np.round(gold + noise * rng.standard_normal(count), 1)


@pytest.mark.parametrize("block", [1, 100, 2**16])
def test_the_bootstrap_is_scipys(block, monkeypatch):
    monkeypatch.setattr(stats, "BLOCK_ELEMENTS", block)
    gold, predicted = graded(0, 37, 2.0)
    found = bootstrap_spearman(gold, predicted, resamples=300, seed=7)
    expected = bootstrap(
        (gold, predicted),
        spearman,
        paired=True,
        vectorized=False,
        n_resamples=300,
        method="percentile",
        confidence_level=0.9,
        rng=np.random.default_rng(7),
    )
    np.testing.assert_allclose(found.resampled, expected.bootstrap_distribution, atol=1e-12)
    interval = found.interval(0.9)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected.confidence_interval))
    assert (interval.num_resamples, interval.num_undefined) == (300, 0)
    assert found.value == spearman(gold, predicted)


@pytest.mark.unmeasured
@FEW
@given(pairs=PAIRS)
def test_each_resample_has_ranks_of_its_own(pairs):
    gold, predicted = columns(pairs)
    found = bootstrap_spearman(gold, predicted, resamples=20, seed=1).resampled
    drawn = np.random.default_rng(1).integers(0, len(gold), (20, len(gold)))
    expected = [spearman(gold[row], predicted[row]) for row in drawn]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_resamples_without_a_value_are_left_out_and_counted():
    """Of 3 pairs with 2 scores, a resample is constant if it draws one score only: 9 of 27."""
    gold, predicted = np.array([0.0, 0.0, 1.0]), np.array([1.0, 2.0, 3.0])
    found = bootstrap_spearman(gold, predicted, resamples=2700)
    interval = found.interval()
    assert interval.num_undefined == np.isnan(found.resampled).sum()
    assert interval.num_undefined == pytest.approx(900, abs=100)
    assert -1 <= interval.low <= interval.high <= 1 + 1e-12


@pytest.mark.parametrize(
    ("gold", "predicted"),
    [([1, 2, 3], [5, 5, 5]), ([2, 2, 2], [1, 2, 3]), ([1], [1]), ([], []), ([1, 2], [np.nan, 1])],
)
def test_what_is_undefined_has_no_interval(gold, predicted):
    found = bootstrap_spearman(np.array(gold), np.array(predicted), resamples=50)
    assert math.isnan(found.value)
    interval = found.interval()
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert interval.num_undefined == 50
    assert math.isnan(paired_difference(found, found).p_value)


def test_no_resamples_leave_the_value_alone():
    gold, predicted = graded(0, 20, 1.0)
    found = bootstrap_spearman(gold, predicted, resamples=0)
    assert found.value == spearman(gold, predicted)
    assert math.isnan(found.interval().low)
    assert found.interval().num_resamples == 0


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of a normal pair with correlation r, Spearman's is 6/pi asin(r/2)."""
    truth = 6 / math.pi * math.asin(0.3)
    rng = np.random.default_rng(11)
    held = 0
    for seed in range(400):
        sample = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=80)
        interval = bootstrap_spearman(*sample.T, resamples=300, seed=seed).interval(0.9)
        held += interval.low <= truth <= interval.high
    assert 0.85 <= held / 400 <= 0.95


def test_equal_systems_differ_by_nothing():
    gold, predicted = graded(2, 50, 1.0)
    estimate = bootstrap_spearman(gold, predicted, resamples=100)
    found = paired_difference(estimate, bootstrap_spearman(gold, predicted * 3 + 1, resamples=100))
    assert (found.value, found.interval.low, found.interval.high) == (0, 0, 0)
    assert found.p_value == 1


def test_differences_are_paired():
    """Two noisy copies of one prediction differ by far less than either varies."""
    gold, predicted = graded(4, 300, 3.0)
    nudged = predicted + 0.05 * (gold - predicted)
    low, high = (bootstrap_spearman(gold, each, resamples=500) for each in (predicted, nudged))
    found = paired_difference(high, low)
    assert found.value == pytest.approx(spearman(gold, nudged) - spearman(gold, predicted))
    own = low.interval()
    assert found.interval.high - found.interval.low < 0.3 * (own.high - own.low)
    assert 0 < found.interval.low <= found.value <= found.interval.high
    assert found.p_value == pytest.approx(2 / 501), "the least that 500 resamples can show"
    turned = paired_difference(low, high)
    assert turned.p_value == found.p_value
    assert turned.interval.low == pytest.approx(-found.interval.high)


def test_p_values_of_equally_good_systems_are_uniform():
    rng = np.random.default_rng(5)
    values = []
    for seed in range(300):
        gold = rng.standard_normal(100)
        first, second = (gold + rng.standard_normal(100) for _ in range(2))
        estimates = [bootstrap_spearman(gold, x, resamples=200, seed=seed) for x in (first, second)]
        values.append(paired_difference(*estimates).p_value)
    assert np.mean(np.array(values) < 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


def test_p_values_agree_with_a_t_test_where_both_apply():
    """Means of differences by hand, as if they were correlations: the t test is near."""
    rng = np.random.default_rng(8)
    first = rng.standard_normal(400)
    second = first - 0.1 + rng.standard_normal(400)
    drawn = np.random.default_rng(0).integers(0, 400, (4000, 400))
    left, right = (Estimate(x.mean(), x[drawn].mean(axis=1)) for x in (first, second))
    expected = ttest_rel(first, second)
    found = paired_difference(left, right)
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.02)
    bounds = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(bounds), abs=0.01)


def test_the_mean_of_estimates_is_taken_resample_by_resample():
    first, second = Estimate(0.5, np.array([0.4, 0.6])), Estimate(0.1, np.array([0.0, np.nan]))
    found = mean_estimate([first, second])
    assert found.value == pytest.approx(0.3)
    np.testing.assert_array_equal(found.resampled, [0.2, np.nan])
