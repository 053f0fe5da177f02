import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sempa_mlx.evaluation.means import clustered_mean, plain_mean, pooled_mean

values = st.lists(st.floats(-100, 100), min_size=2, max_size=20)
quick = settings(max_examples=50, deadline=None, derandomize=True)


@quick
@given(values)
def test_the_error_of_a_mean_is_scipys(numbers):
    found = plain_mean(numbers)
    assert found.value == pytest.approx(np.mean(numbers), abs=1e-9)
    assert found.standard_error == pytest.approx(stats.sem(numbers), abs=1e-9)
    assert found.count == len(numbers)


def test_an_accuracy_by_hand():
    # 3 of 4: mean 0.75, squared deviations 3 * 1/16 + 9/16 = 3/4, over n - 1 = 1/4, root / 2.
    found = plain_mean([1, 1, 0, 1])
    assert (found.value, found.standard_error) == (0.75, 0.25)


def test_what_is_undefined_is_not_a_number():
    assert math.isnan(plain_mean([]).value)
    assert math.isnan(plain_mean([]).standard_error)
    assert math.isnan(plain_mean([1.0]).standard_error)
    assert math.isnan(pooled_mean([]).value)
    assert math.isnan(pooled_mean([[1.0], [2.0]]).standard_error)
    assert math.isnan(clustered_mean([], []).value)
    assert math.isnan(clustered_mean([4.0], [2]).standard_error)
    assert clustered_mean([4.0], [2]).value == 2.0


@quick
@given(values)
def test_one_part_pools_to_itself(numbers):
    pooled, plain = pooled_mean([numbers]), plain_mean(numbers)
    assert pooled.value == pytest.approx(plain.value, abs=1e-9)
    assert pooled.standard_error == pytest.approx(plain.standard_error, abs=1e-9)


@quick
@given(st.lists(values, min_size=1, max_size=5))
def test_pooling_follows_lm_evals_formula(parts):
    """From errors and sizes of the parts: sqrt(sum((n-1) se^2 n) / (N - k) / N)."""
    sizes = [len(part) for part in parts]
    errors = [stats.sem(part) for part in parts]
    spread = sum((n - 1) * error**2 * n for n, error in zip(sizes, errors, strict=True))
    expected = math.sqrt(spread / (sum(sizes) - len(sizes)) / sum(sizes))
    found = pooled_mean(parts)
    assert found.standard_error == pytest.approx(expected, abs=1e-9)
    assert found.value == pytest.approx(
        np.mean([value for part in parts for value in part]), abs=1e-9
    )
    assert found.count == sum(sizes)


@quick
@given(values)
def test_clusters_of_one_item_are_items(numbers):
    ratio, plain = clustered_mean(numbers, [1] * len(numbers)), plain_mean(numbers)
    assert ratio.value == pytest.approx(plain.value, abs=1e-9)
    assert ratio.standard_error == pytest.approx(plain.standard_error, abs=1e-9)


def test_items_that_only_repeat_inside_a_cluster_teach_nothing_new():
    few = clustered_mean([1.0, 3.0, 2.0], [1, 1, 1])
    many = clustered_mean([10.0, 30.0, 20.0], [10, 10, 10])
    assert many.value == few.value
    assert many.standard_error == pytest.approx(few.standard_error)
    assert many.count == 30
