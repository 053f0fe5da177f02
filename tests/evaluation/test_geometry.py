import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import ortho_group

from sempa_mlx.evaluation import geometry
from sempa_mlx.evaluation.geometry import measure_geometry

FEW = settings(max_examples=60, deadline=None, derandomize=True)
SHAPES = st.tuples(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 12))
UNDEFINED_ALONE = ("uniformity", "average_cosine", "iso_score", "effective_rank")


def gaussian(seed, count, dim, shift=0.5):
    return np.random.default_rng(seed).standard_normal((count, dim)) + shift


def naive(vectors, positives=()):
    """Every measure from its definition, over whole matrices in double precision."""
    units = np.array([row / np.sqrt(sum(row * row)) for row in vectors.astype(np.float64)])
    dim = units.shape[1]
    distances = pdist(units, "sqeuclidean")  # each pair once
    _, axes = np.linalg.eig(units.T @ units)
    partition = [np.exp(sign * (units @ axis)).sum() for axis in axes.T for sign in (1, -1)]
    scale = np.linalg.eigvalsh(np.cov(units.T))
    # Steps 4 to 7 of Rudman et al. as their package has them.
    normalised = scale * math.sqrt(dim) / np.linalg.norm(scale)
    defect = np.linalg.norm(normalised - 1) / math.sqrt(2 * (dim - math.sqrt(dim)))
    used = (dim - defect**2 * (dim - math.sqrt(dim))) ** 2
    shares = scale.clip(min=0) / scale.clip(min=0).sum()
    return {
        "alignment": np.mean([sum((units[i] - units[j]) ** 2) for i, j in positives] or [math.nan]),
        "uniformity": math.log(np.exp(-2 * distances).mean()),
        "average_cosine": (1 - distances / 2).mean(),
        "partition_isotropy": min(partition) / max(partition),
        "iso_score": (used - dim) / (dim * (dim - 1)),
        "effective_rank": math.exp(-sum(share * math.log(share) for share in shares if share > 0)),
    }


@pytest.mark.parametrize("block", [1, 7, 1024])
@pytest.mark.parametrize(("count", "dim"), [(2, 5), (40, 6), (23, 23), (9, 30)])
def test_measures_equal_their_definitions(count, dim, block, monkeypatch):
    monkeypatch.setattr(geometry, "BLOCK", block)
    vectors = gaussian(count, count, dim)
    positives = np.array([[0, 1], [1, 1], [count - 1, 0]])
    found, expected = measure_geometry(vectors, positives), naive(vectors, positives)
    assert (found.num_vectors, found.dim, found.num_zero, found.num_positives) == (count, dim, 0, 3)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_real_sizes_and_float32_change_little():
    """More vectors than one block; the diagonal tile and the others all count once."""
    vectors = gaussian(0, geometry.BLOCK + 300, 8).astype(np.float32)
    expected = naive(vectors, [(0, geometry.BLOCK + 299)])
    found = measure_geometry(vectors, np.array([[0, geometry.BLOCK + 299]]))
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name


@FEW
@given(shape=SHAPES)
def test_a_rotation_changes_nothing(shape):
    seed, count, dim = shape
    vectors = gaussian(seed, count, dim)
    rotated = vectors @ ortho_group.rvs(dim, random_state=seed)
    expected = astuple(measure_geometry(vectors, np.array([[0, 1]])))
    found = astuple(measure_geometry(rotated, np.array([[0, 1]])))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@FEW
@given(shape=SHAPES)
def test_neither_order_nor_length_of_vectors_counts(shape):
    seed, count, dim = shape
    vectors, rng = gaussian(seed, count, dim), np.random.default_rng(seed)
    order = rng.permutation(count)
    lengths = 2.0 ** rng.integers(-900, 900, (count, 1))  # squares leave the range of doubles
    place = {old: new for new, old in enumerate(order.tolist())}
    expected = astuple(measure_geometry(vectors, np.array([[0, 1]])))
    found = astuple(measure_geometry((vectors * lengths)[order], np.array([[place[0], place[1]]])))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@FEW
@given(shape=SHAPES)
def test_measures_stay_in_their_ranges(shape):
    seed, count, dim = shape
    found = measure_geometry(gaussian(seed, count, dim), np.array([[0, 1]]))
    bounds = {
        "alignment": (0, 4),
        "uniformity": (-8, 0),
        "average_cosine": (-1, 1),
        "partition_isotropy": (math.exp(-2), 1),
        "iso_score": (0, 1),
        "effective_rank": (1, dim),
    }
    for name, (low, high) in bounds.items():
        assert low - 1e-9 <= getattr(found, name) <= high + 1e-9, name


def test_an_orthonormal_basis_by_hand():
    """Every distance is sqrt 2; C = I/d - 11'/d^2 has d - 1 equal eigenvalues and a zero."""
    found = measure_geometry(np.eye(6), np.array([[0, 1], [2, 2]]))
    assert found.alignment == pytest.approx(1.0)  # 2 and 0
    assert found.uniformity == pytest.approx(-4.0)
    assert found.average_cosine == pytest.approx(0.0)
    assert found.effective_rank == pytest.approx(5.0)
    assert found.iso_score == pytest.approx(4 / 5)
    assert found.partition_isotropy == pytest.approx((5 + math.exp(-1)) / (5 + math.e))


def test_a_basis_and_its_mirror_image_are_isotropic():
    found = measure_geometry(np.concatenate([np.eye(4), -np.eye(4)]))
    assert found.iso_score == pytest.approx(1.0)
    assert found.effective_rank == pytest.approx(4.0)
    assert found.partition_isotropy == pytest.approx(1.0)
    assert found.average_cosine == pytest.approx(-1 / 7)  # of 7 others 1 lies opposite


def test_two_opposite_vectors_by_hand():
    found = measure_geometry(np.array([[3.0, 4.0], [-0.3, -0.4]]), np.array([[0, 1]]))
    assert found.alignment == pytest.approx(4.0)
    assert found.uniformity == pytest.approx(-8.0)
    assert found.average_cosine == pytest.approx(-1.0)
    assert found.iso_score == pytest.approx(0.0, abs=1e-12)
    assert found.effective_rank == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_directions_do_not_vary(dtype):
    lengths = np.linspace(0.1, 3, 50)[:, None]
    vectors = (np.array([[0.3, -1.7, 0.9]]) * lengths).astype(dtype)
    found = measure_geometry(vectors, np.array([[0, 49]]))
    assert found.alignment == pytest.approx(0.0, abs=1e-12)
    assert found.uniformity == pytest.approx(0.0, abs=1e-12)
    assert found.average_cosine == pytest.approx(1.0)
    assert found.partition_isotropy == pytest.approx(math.exp(-2))
    assert math.isnan(found.iso_score)
    assert math.isnan(found.effective_rank)


def test_a_small_variation_is_still_one():
    vectors = np.ones((50, 3)) + 1e-3 * gaussian(0, 50, 3)
    found = measure_geometry(vectors)
    assert found.iso_score == pytest.approx(naive(vectors)["iso_score"])
    assert found.effective_rank == pytest.approx(naive(vectors)["effective_rank"])


def test_many_gaussian_vectors_in_high_dimension_are_uniform():
    """A cosine is about N(0, 1/d): E exp(4 c - 4) = exp(8/d - 4); ranks as Marchenko-Pastur has."""
    count, dim = 2000, 256
    found = measure_geometry(gaussian(3, count, dim, shift=0))
    assert found.uniformity == pytest.approx(-4 + 8 / dim, abs=2e-3)
    assert found.average_cosine == pytest.approx(0, abs=1e-3)
    assert found.iso_score == pytest.approx(1 / (1 + dim / count), abs=0.01)
    assert found.effective_rank == pytest.approx(dim * math.exp(-dim / count / 2), rel=0.01)
    assert found.partition_isotropy > 0.98


def test_zero_vectors_are_left_out_and_counted():
    vectors = gaussian(1, 9, 4)
    mixed = np.insert(vectors, [0, 5], 0.0, axis=0)  # rows 0 and 6 are zero
    found = measure_geometry(mixed, np.array([[1, 2], [0, 1], [6, 6]]))
    expected = measure_geometry(vectors, np.array([[0, 1]]))
    assert (found.num_zero, found.num_vectors, found.num_positives) == (2, 9, 1)
    assert astuple(found)[2:] == astuple(expected)[2:]


@pytest.mark.parametrize("count", [0, 1])
def test_what_needs_two_vectors_is_undefined_for_fewer(count):
    found = measure_geometry(np.ones((count, 3)))
    assert all(math.isnan(getattr(found, name)) for name in UNDEFINED_ALONE)
    assert math.isnan(found.alignment)
    assert math.isnan(found.partition_isotropy) == (count == 0)


def test_only_zero_vectors_leave_nothing_to_measure():
    found = measure_geometry(np.zeros((3, 4)), np.array([[0, 1]]))
    assert (found.num_vectors, found.num_zero, found.num_positives) == (0, 3, 0)
    assert all(math.isnan(value) for value in astuple(found)[4:])


def test_one_dimension_has_no_isotropy():
    found = measure_geometry(np.array([[1], [-2], [3]]))
    assert math.isnan(found.iso_score)
    assert found.effective_rank == pytest.approx(1.0)
    assert found.average_cosine == pytest.approx(-1 / 3)


@pytest.mark.parametrize(
    ("vectors", "positives", "message"),
    [
        (np.ones(3), None, r"\(n, dim\)"),
        (np.ones((3, 0)), None, r"\(n, dim\)"),
        (np.array([["a", "b"]]), None, "real numbers"),
        (np.ones((2, 2), dtype=complex), None, "real numbers"),
        (np.array([[1.0, 2], [3, np.nan]]), None, "vector 1 holds NaN"),
        (np.array([[-np.inf, 2], [3, 1]]), None, "vector 0 holds NaN"),
        (np.eye(3), np.array([0, 1]), r"\(pairs, 2\)"),
        (np.eye(3), np.array([[0, 1, 2]]), r"\(pairs, 2\)"),
        (np.eye(3), np.array([[0.0, 1.0]]), "integers"),
        (np.eye(3), np.array([[0, 3]]), "outside 0 to 2"),
        (np.eye(3), np.array([[-1, 0]]), "outside 0 to 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(vectors, positives, message):
    with pytest.raises(ValueError, match=message):
        measure_geometry(vectors, positives)


def test_the_arguments_are_left_alone():
    vectors, positives = gaussian(0, 5, 3), np.array([[0, 1]])
    before = vectors.copy()
    measure_geometry(vectors, positives)
    np.testing.assert_array_equal(vectors, before)
    assert positives.tolist() == [[0, 1]]
