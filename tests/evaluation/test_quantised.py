"""Rounding to few bytes, against loops over numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from sempa_mlx.evaluation.quantised import (
    halved,
    halved_codes,
    int8_levels,
    int8_values,
    largest,
    signs,
)
from sempa_mlx.evaluation.stats import cosines

FEW = settings(max_examples=40, deadline=None, derandomize=True)


def gaussian(seed=0, count=20, dim=7, shift=0.5):
    draw = np.random.default_rng(seed)
    return (3 * draw.standard_normal((count, dim)) + shift).astype(np.float32)


def test_halves_are_halves_of_unit_vectors_however_long():
    vectors = gaussian() * np.float32(1e6)
    found = halved(vectors)
    assert found.dtype == np.float32
    assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(cosines(found, vectors), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    assert not np.array_equal(found, halved(vectors.round(-6)))


def test_a_zero_vector_stays_zero():
    assert not halved(np.zeros((2, 3), dtype=np.float32)).any()


@FEW
@given(st.integers(0, 999), st.integers(1, 7))
def test_the_k_largest_magnitudes_stay_with_their_signs(seed, k):
    vectors = gaussian(seed)
    found = largest(vectors, k)
    for row, kept in zip(vectors, found, strict=True):
        order = sorted(range(7), key=lambda place: -abs(row[place]))[:k]
        assert {place for place in range(7) if kept[place]} == set(order)
        assert all(kept[place] == row[place] for place in order)


def test_levels_are_those_of_the_formula():
    vectors, fit = gaussian(1), gaussian(2, 50)
    units = [np.float32(row) / np.linalg.norm(row) for row in fit]
    found = int8_levels(vectors, fit)
    assert found.dtype == np.int8
    wrong = 0
    for row, levels in zip(vectors.astype(np.float64), found, strict=True):
        unit = row / np.sqrt((row**2).sum())
        for place in range(7):
            low = float(min(each[place] for each in units))
            high = float(max(each[place] for each in units))
            exact = (unit[place] - low) / (high - low) * 255
            expected = min(max(int(np.floor(exact)), 0), 255) - 128
            wrong += expected != levels[place]
            assert abs(expected - levels[place]) <= (abs(exact - round(exact)) < 1e-4)
    assert wrong <= 1


def test_levels_end_where_the_range_ends():
    fit = np.array([[0.6, 0.8, 0], [0.8, 0.6, 0]], dtype=np.float32)
    found = int8_levels(np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32), fit)
    assert found[:, :2].tolist() == [[127, -128], [-128, 127]]


def test_a_dimension_without_range_is_no_division_by_zero():
    fit = np.array([[0.6, 0.8, 0], [0.8, 0.6, 0]], dtype=np.float32)
    assert np.isfinite(int8_values(fit, fit)).all()


def test_values_lie_within_half_a_step_of_the_unit_vectors():
    vectors = gaussian(3, 200)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    step = (units.max(axis=0) - units.min(axis=0)) / 255
    assert (np.abs(int8_values(vectors, vectors) - units) <= 0.5001 * step + 1e-7).all()


def test_the_cosine_of_signs_is_one_less_two_hamming_shares():
    one, other = signs(gaussian(4)), signs(gaussian(5))
    assert set(np.unique(one)) == {-1, 1}
    differ = (gaussian(4) > 0) != (gaussian(5) > 0)
    np.testing.assert_allclose(cosines(one, other), 1 - 2 * differ.mean(axis=1), atol=1e-12)


def test_codes_are_rounded_at_unit_length_and_keep_their_places():
    codes = csr_array(np.array([[0, 3e5, 0, 4e5], [0, 0, 0, 0], [1e-9, 0, 0, 0]], np.float32))
    found = halved_codes(codes)
    expected = np.array([[0, 0.6, 0, 0.8], [0, 0, 0, 0], [1, 0, 0, 0]]).astype(np.float16)
    assert np.array_equal(found.toarray(), expected.astype(np.float32))
    assert found.dtype == np.float32
    assert codes.max() == pytest.approx(4e5)
