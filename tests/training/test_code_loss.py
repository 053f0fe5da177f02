"""Losses of codes against NumPy, value by value; gradients against finite differences."""

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.training.code_loss import (
    CoderWeights,
    code_loss,
    cosines,
    preference_nll,
    strongest,
    unexplained,
)

DIM, HIDDEN, COUNT, K = 5, 24, 8, 3


def make_weights(seed=0):
    draw = np.random.default_rng(seed)
    shapes = ((HIDDEN, DIM), (HIDDEN,), (DIM,))
    return tuple(0.4 * draw.standard_normal(shape) for shape in shapes)


def make_vectors(seed=1):
    return np.random.default_rng(seed).standard_normal((COUNT, DIM))


def in_mlx(arrays):
    return CoderWeights(*(mx.array(each.astype(np.float32)) for each in arrays))


def naive_strongest(latents, k):
    found = np.zeros_like(latents)
    for row, values in enumerate(latents):
        for place in sorted(range(len(values)), key=lambda place: -values[place])[:k]:
            found[row, place] = max(values[place], 0)
    return found


def naive_loss(vectors, weights, k, dead=None):
    atoms, bias, shift = weights
    latents = (vectors - shift) @ atoms.T + bias
    variance = ((vectors - vectors.mean(axis=0)) ** 2).sum()

    def missed_by(codes):
        return vectors - (codes @ atoms + shift)

    missed = missed_by(naive_strongest(latents, k))
    loss = (missed**2).sum() / variance
    loss += (missed_by(naive_strongest(latents, 4 * k)) ** 2).sum() / variance / 8
    if dead is not None and dead.any():
        spare = naive_strongest(np.where(dead, latents, 0), HIDDEN // 4)
        loss += ((missed - spare @ atoms) ** 2).sum() / (missed**2).sum() / 32
    return loss


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 1.0])
def test_loss_is_the_sum_of_its_three_parts(share):
    vectors, weights = make_vectors(), make_weights()
    dead = None if share is None else np.arange(HIDDEN) < share * HIDDEN
    loss, codes = code_loss(
        mx.array(vectors.astype(np.float32)),
        in_mlx(weights),
        K,
        None if dead is None else mx.array(dead),
    )
    assert float(loss) == pytest.approx(naive_loss(vectors, weights, K, dead), rel=1e-5)
    assert codes.shape == (COUNT, HIDDEN)
    assert (np.array(codes) > 0).sum(axis=1).max() <= K


@pytest.mark.parametrize("part", [0, 1, 2])
def test_gradients_are_those_of_finite_differences(part):
    vectors, weights = make_vectors(), make_weights()
    seen = mx.array(vectors.astype(np.float32))
    gradients = mx.grad(lambda *arrays: code_loss(seen, CoderWeights(*arrays), K, None)[0], part)(
        *in_mlx(weights)
    )
    found, step = np.array(gradients), 1e-6
    draw = np.random.default_rng(3)
    for _ in range(12):
        place = tuple(draw.integers(size) for size in weights[part].shape)
        values = []
        for sign in (1, -1):
            moved = [each.copy() for each in weights]
            moved[part][place] += sign * step
            values.append(naive_loss(vectors, moved, K))
        expected = (values[0] - values[1]) / (2 * step)
        assert found[place] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_residual_of_dead_latents_pulls_no_gradient_through_what_was_missed():
    """Only atoms of dead latents, and what feeds them, learn from the auxiliary part."""
    vectors, weights = make_vectors(), make_weights()
    dead = np.arange(HIDDEN) >= HIDDEN // 2
    seen = mx.array(vectors.astype(np.float32))

    def loss(atoms, mask):
        tied = in_mlx(weights)._replace(atoms=atoms)
        return code_loss(seen, tied, K, mask)[0]

    atoms = in_mlx(weights).atoms
    with_part = mx.grad(loss)(atoms, mx.array(dead))
    without = mx.grad(
        lambda each: code_loss(seen, in_mlx(weights)._replace(atoms=each), K, None)[0]
    )(atoms)
    change = np.abs(np.array(with_part - without)).max(axis=1)
    assert change[~dead].max() < 1e-6
    assert change[dead].max() > 1e-4


def test_perfect_and_constant_rebuilding():
    vectors = mx.array(make_vectors().astype(np.float32))
    assert float(unexplained(vectors, vectors)) == 0
    mean = mx.broadcast_to(vectors.mean(axis=0), vectors.shape)
    assert float(unexplained(vectors, mean)) == pytest.approx(1, rel=1e-5)


def test_strongest_keeps_all_when_k_is_the_width():
    latents = mx.array([[1.0, -2.0, 3.0]])
    assert strongest(latents, 3).tolist() == [[1, 0, 3]]
    assert strongest(latents, 1).tolist() == [[0, 0, 3]]
    assert strongest(mx.array([[-1.0, -2.0, -3.0]]), 2).tolist() == [[0, 0, 0]]


def test_cosine_with_an_empty_code_is_zero_and_has_a_gradient():
    codes = mx.array([[0.0, 0.0], [3.0, 4.0]])
    assert cosines(codes, codes).tolist() == [[0, 0], [0, pytest.approx(1)]]
    gradient = mx.grad(lambda each: cosines(each, each).sum())(codes)
    assert np.isfinite(np.array(gradient)).all()


@pytest.mark.parametrize("adjusted", [False, True])
def test_preference_is_infonce_on_codes(adjusted):
    draw = np.random.default_rng(5)
    codes, base = np.abs(draw.standard_normal((6, 9))), draw.standard_normal((6, DIM))
    anchors, candidates, t = [0, 3], [1, 2, 4, 5], 0.2

    def cosine(rows, left, right):
        return rows[left] @ rows[right] / np.linalg.norm(rows[left]) / np.linalg.norm(rows[right])

    expected = []
    for number, anchor in enumerate(anchors):
        scores = [
            (cosine(codes, anchor, other) - (cosine(base, anchor, other) if adjusted else 0)) / t
            for other in candidates
        ]
        expected.append(np.log(np.exp(scores).sum()) - scores[2 * number])
    found = preference_nll(
        mx.array(codes.astype(np.float32)),
        anchors,
        candidates,
        mx.zeros((2, 4), dtype=mx.bool_),
        t,
        mx.array(base.astype(np.float32)) if adjusted else None,
    )
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-5)


def test_adjusted_preference_of_unchanged_cosines_is_the_logarithm_of_the_candidates():
    vectors = mx.array(make_vectors().astype(np.float32))
    found = preference_nll(
        vectors, [0, 4], [1, 2, 5, 6], mx.zeros((2, 4), dtype=mx.bool_), 0.2, vectors
    )
    np.testing.assert_allclose(np.array(found), np.log(4), rtol=1e-5)
