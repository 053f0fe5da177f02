"""Fitting: planted atoms are found, what is asked for happens, what cannot be is refused."""

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.config import SparseConfig
from sempa_mlx.encoder.fit_coder import fit_coder
from sempa_mlx.encoder.fit_dictionary import fit_dictionary
from sempa_mlx.encoder.fit_topk import annealed, first_weights, fit_topk
from sempa_mlx.encoder.sparse import code_cosines
from sempa_mlx.errors import DataError, UsageError
from sempa_mlx.training.code_loss import (
    CoderWeights,
    code_loss,
    pre_activations,
    rebuilt,
    strongest,
)

DIM, PLANTED, COUNT = 16, 24, 600


def planted(seed=0, values=3):
    """Vectors that are sums of a few of 24 atoms around a large mean; (vectors, atoms)."""
    draw = np.random.default_rng(seed)
    atoms = draw.standard_normal((PLANTED, DIM))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = np.zeros((COUNT, PLANTED))
    for row in codes:
        row[draw.choice(PLANTED, values, replace=False)] = 1 + draw.random(values)
    return (codes @ atoms + 5).astype(np.float32), atoms


def settings(kind="topk", **changes):
    usual = {"k": 3, "hidden": 48, "epochs": 30, "batch_size": 64, "learning_rate": 5e-3}
    return SparseConfig(coder=kind, **usual | changes)


def unexplained(coder, vectors):
    missed = vectors - coder.decode(coder.encode(vectors))
    return (missed**2).sum() / ((vectors - vectors.mean(axis=0)) ** 2).sum()


@pytest.mark.parametrize(("kind", "bound"), [("topk", 0.25), ("fista", 0.2)])
def test_planted_structure_is_rebuilt(kind, bound):
    vectors, _ = planted()
    coder = fit_coder(vectors, settings(kind), made_by="key")
    assert coder.encode(vectors).nnz <= 3 * COUNT
    assert unexplained(coder, vectors) < bound
    assert unexplained(coder, planted(0)[0]) == unexplained(coder, vectors)
    assert (coder.kind, coder.k, coder.hidden, coder.num_texts) == (kind, 3, 48, COUNT)


def test_planted_atoms_are_found():
    vectors, atoms = planted()
    centred = vectors - vectors.mean(axis=0)
    found = fit_dictionary(centred, settings("fista", k=4, epochs=40), 48, seed=0)
    nearest = (atoms @ found.atoms.T).max(axis=1)
    assert np.sort(nearest)[PLANTED // 2 :].min() > 0.9
    np.testing.assert_allclose(np.linalg.norm(found.atoms, axis=1), 1, rtol=1e-5)
    assert found.num_values[-1] == pytest.approx(4, rel=0.2), "the penalty follows k"


@pytest.mark.parametrize("kind", ["topk", "fista"])
def test_fit_is_a_function_of_its_seed(kind):
    vectors, _ = planted()
    first, again, other = (
        fit_coder(vectors, settings(kind, epochs=2), made_by="key", seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.atoms, again.atoms)
    assert np.abs(first.atoms - other.atoms).max() > 1e-3


def test_fitting_rebuilds_more_than_the_start():
    vectors, _ = planted()
    centred = vectors - vectors.mean(axis=0)
    found = fit_topk(centred, [], settings(), 48, seed=0)
    assert len(found.losses) == 30
    learned = CoderWeights(*map(mx.array, (found.atoms, found.bias, found.shift)))
    started = first_weights(centred, 48, np.random.default_rng(0))
    before, after = (
        code_loss(mx.array(centred), weights, 3, None)[0].item() for weights in (started, learned)
    )
    assert after < 0.7 * before


def test_the_start_keeps_the_strongest_principal_components():
    """Its codes and what they rebuild, against numpy's singular vectors."""
    vectors = planted()[0]
    centred = vectors - vectors.mean(axis=0)
    weights = first_weights(centred, 2 * DIM, np.random.default_rng(0))
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    components = centred @ axes.T
    least = np.sort(np.abs(components), axis=1)[:, [-5]]
    kept = np.where(np.abs(components) >= least, components, 0)
    codes = strongest(pre_activations(mx.array(centred), weights), 5)
    np.testing.assert_allclose(np.array(rebuilt(codes, weights)), kept @ axes, atol=1e-4)
    assert np.array(codes).min() >= 0


@pytest.mark.parametrize("hidden", [5, 32, 40])
def test_the_start_has_as_many_latents_as_asked_for(hidden):
    vectors = planted()[0] - 5
    atoms = np.array(first_weights(vectors, hidden, np.random.default_rng(0)).atoms)
    assert atoms.shape == (hidden, DIM)
    assert len(np.unique(atoms.round(6), axis=0)) == hidden
    lengths = np.linalg.norm(atoms, axis=1)
    np.testing.assert_allclose(lengths[: 2 * DIM], 1, rtol=1e-5)
    assert (lengths[2 * DIM :] < 0.5).all()


def test_rankings_draw_codes_of_paraphrases_together():
    """Candidates are the anchor with little or much noise; only rankings can tell which matters."""
    draw = np.random.default_rng(0)
    anchors = planted()[0][:200]
    near = anchors + 0.5 * draw.standard_normal(anchors.shape)
    far = anchors + 0.5 * draw.standard_normal(anchors.shape)
    vectors = np.concatenate([anchors, near, far]).astype(np.float32)
    rankings = [(row, 200 + row, 400 + row) for row in range(200)]

    def margin(preference):
        fit = settings(epochs=15, preference=preference)
        coder = fit_coder(vectors, fit, made_by="key", rankings=rankings)
        codes = coder.encode(vectors)
        to_near, to_far = (
            code_cosines(codes[:200], codes[start : start + 200]).mean() for start in (200, 400)
        )
        return to_near - to_far

    assert margin(3.0) > margin(0.0) + 0.05


def test_small_k_is_approached_from_above():
    steps = [annealed(2, 100, step, 100) for step in range(101)]
    assert (steps[0], steps[70], steps[100]) == (64, 2, 2)
    assert steps == sorted(steps, reverse=True)
    assert {annealed(32, 100, step, 100) for step in range(101)} == {32}
    assert annealed(4, 10, 0, 100) == 10, "no more values than latents"


def test_lexical_coder_takes_the_matrix_as_it_is():
    vectors, _ = planted()
    matrix = np.random.default_rng(1).standard_normal((70, DIM)).astype(np.float32)
    coder = fit_coder(vectors, settings("lexical", k=5), made_by="key", output_matrix=matrix)
    np.testing.assert_array_equal(coder.atoms, matrix)
    logits = (vectors - vectors.mean(axis=0, dtype=np.float64)) @ matrix.T
    strongest = logits.argmax(axis=1)
    codes = coder.encode(vectors).toarray()
    assert (codes.argmax(axis=1) == strongest).all()
    np.testing.assert_allclose(codes.max(axis=1), np.log1p(logits.max(axis=1)), rtol=1e-4)
    # The gain is the best there is.
    best = unexplained(coder, vectors)
    for factor in (0.95, 1.05):
        object.__setattr__(coder, "gain", coder.gain * factor)
        assert unexplained(coder, vectors) > best
        object.__setattr__(coder, "gain", coder.gain / factor)


@pytest.mark.parametrize("kind", ["topk", "fista", "lexical"])
def test_k_beyond_the_latents_is_refused(kind):
    vectors, _ = planted()
    matrix = np.ones((48, DIM), np.float32) if kind == "lexical" else None
    with pytest.raises(UsageError, match="1 to 48"):
        fit_coder(vectors, settings(kind, k=49), made_by="key", output_matrix=matrix)


def test_embeddings_that_are_not_finite_are_refused():
    vectors, _ = planted()
    vectors[7] = np.nan
    with pytest.raises(DataError, match="1 of 600"):
        fit_coder(vectors, settings(), made_by="key")


def test_one_text_is_too_few():
    with pytest.raises(DataError, match="too few"):
        fit_coder(planted()[0][:1], settings(), made_by="key")


@pytest.mark.parametrize("kind", ["topk", "fista"])
def test_equal_vectors_give_a_coder_that_rebuilds_them(kind):
    vectors = np.tile(planted()[0][0], (20, 1))
    coder = fit_coder(vectors, settings(kind, epochs=2), made_by="key")
    np.testing.assert_allclose(coder.decode(coder.encode(vectors)), vectors, atol=1e-2)


def test_fewer_vectors_than_latents_will_do():
    vectors = planted()[0][:10]
    coder = fit_coder(vectors, settings(epochs=5), made_by="key")
    assert np.isfinite(coder.atoms).all()
