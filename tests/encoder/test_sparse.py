"""Sparse coders against naive arithmetic; FISTA against the conditions of its optimum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.sparse import csr_array

from sempa_mlx.encoder.fista import largest_eigenvalue, nonnegative_codes
from sempa_mlx.encoder.sparse import SparseCoder, code_cosines, shortened
from sempa_mlx.errors import DataError, UsageError

KINDS = ("topk", "fista", "lexical")


def make_coder(kind="topk", *, dim=6, hidden=15, k=4, seed=0, **changes):
    draw = np.random.default_rng(seed)
    about = {"penalty": 0.3 if kind == "fista" else 0.0, "gain": 0.7} | changes
    return SparseCoder(
        kind,
        k,
        "key",
        100,
        about["penalty"],
        about["gain"],
        centre=draw.standard_normal(dim).astype(np.float32),
        scale=(0.5 + draw.random(dim)).astype(np.float32),
        atoms=draw.standard_normal((hidden, dim)).astype(np.float32),
        bias=draw.standard_normal(hidden).astype(np.float32)
        if kind == "topk"
        else np.zeros(hidden),
    )


def make_vectors(count=9, dim=6, seed=1):
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def naive_latents(coder, vector):
    """All latents of one vector, by hand, in float64."""
    x = (vector.astype(np.float64) - coder.centre) / coder.scale
    products = [float(atom.astype(np.float64) @ x) for atom in coder.atoms]
    if coder.kind == "topk":
        return [max(p + float(b), 0.0) for p, b in zip(products, coder.bias, strict=True)]
    if coder.kind == "lexical":
        return [float(np.log1p(max(p, 0.0))) for p in products]
    atoms = coder.atoms.astype(np.float64)

    def objective(z):
        missed = x - z @ atoms
        return 0.5 * missed @ missed + coder.penalty * z.sum(), coder.penalty - atoms @ missed

    bounds = [(0, None)] * len(atoms)
    found = minimize(
        objective,
        np.zeros(len(atoms)),
        jac=True,
        bounds=bounds,
        method="L-BFGS-B",
        options={"maxiter": 20_000, "maxfun": 100_000, "ftol": 1e-15, "gtol": 1e-10},
    )
    return list(found.x)


@pytest.mark.parametrize("kind", ["topk", "lexical"])
def test_codes_are_the_strongest_latents_of_naive_arithmetic(kind):
    coder, vectors = make_coder(kind), make_vectors()
    codes = coder.encode(vectors)
    assert codes.shape == (9, 15)
    for row, vector in enumerate(vectors):
        latents = naive_latents(coder, vector)
        expected = [0.0] * 15
        for place in sorted(range(15), key=lambda place: -latents[place])[:4]:
            expected[place] = latents[place]
        np.testing.assert_allclose(codes[[row]].toarray()[0], expected, atol=1e-5)
    assert codes.data.min() > 0
    assert codes.dtype == np.float32
    assert codes.has_sorted_indices


def test_fista_reaches_the_optimum_that_scipy_finds():
    coder, vectors = make_coder("fista", k=15, hidden=10), make_vectors(5)
    x = coder.centred(vectors)
    found = nonnegative_codes(x, coder.atoms, coder.penalty, steps=3000)
    for row, vector in enumerate(vectors):
        expected = np.array(naive_latents(coder, vector))
        missed = x[row] - expected @ coder.atoms
        optimum = 0.5 * missed @ missed + coder.penalty * expected.sum()
        assert found.objectives[-1, row] == pytest.approx(optimum, rel=1e-4)
        # Conditions of the optimum: no pull on what is there, none inward on what is not.
        pull = coder.atoms @ (x[row] - found.codes[row] @ coder.atoms) - coder.penalty
        assert np.abs(pull[found.codes[row] > 0]).max(initial=0) < 1e-3
        assert pull[found.codes[row] == 0].max(initial=-1) < 1e-3


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    penalty=st.floats(0, 3),
    correlated=st.floats(0, 5),
    steps=st.integers(1, 60),
)
def test_objective_of_fista_never_rises(seed, penalty, correlated, steps):
    draw = np.random.default_rng(seed)
    atoms = draw.standard_normal((12, 5)) + correlated * draw.standard_normal(5)
    vectors = draw.standard_normal((4, 5)).astype(np.float32)
    found = nonnegative_codes(vectors, atoms.astype(np.float32), penalty, steps)
    assert (np.diff(found.objectives, axis=0) <= 0).all()
    assert (found.codes >= 0).all()
    missed = vectors - found.codes @ atoms
    direct = 0.5 * (missed**2).sum(axis=1) + penalty * found.codes.sum(axis=1)
    np.testing.assert_allclose(found.objectives[-1], direct, rtol=1e-3, atol=1e-4)


def test_eigenvalue_is_no_smaller_than_the_exact_one():
    for seed in range(20):
        atoms = np.random.default_rng(seed).standard_normal((9, 6)).astype(np.float32)
        exact = np.linalg.eigvalsh(atoms @ atoms.T).max()
        assert exact <= largest_eigenvalue(atoms) <= 1.02 * exact
    assert largest_eigenvalue(np.zeros((3, 2), np.float32)) == 0


def test_codes_of_a_dictionary_of_zeros_are_empty():
    found = nonnegative_codes(make_vectors(3), np.zeros((4, 6), np.float32), 0.1)
    assert not found.codes.any()


@pytest.mark.parametrize("kind", ["topk", "fista"])
def test_decoding_uses_the_same_atoms(kind):
    coder, vectors = make_coder(kind), make_vectors()
    codes = coder.encode(vectors)
    expected = coder.gain * (codes.toarray() @ coder.atoms) * coder.scale + coder.centre
    np.testing.assert_allclose(coder.decode(codes), expected, rtol=1e-5, atol=1e-5)
    assert coder.decode(codes).dtype == np.float32


def test_lexical_decoding_undoes_the_logarithm():
    coder, vectors = make_coder("lexical", k=15), make_vectors()
    logits = np.maximum(coder.centred(vectors) @ coder.atoms.T, 0)
    expected = coder.gain * logits @ coder.atoms * coder.scale + coder.centre
    np.testing.assert_allclose(coder.decode(coder.encode(vectors)), expected, rtol=1e-4, atol=1e-4)


def test_latent_without_values_rebuilds_the_centre():
    coder = make_coder()
    nothing = csr_array((2, coder.hidden), dtype=np.float32)
    np.testing.assert_array_equal(coder.decode(nothing), np.tile(coder.centre, (2, 1)))


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), k=st.integers(1, 15), smaller=st.integers(1, 15))
def test_shorter_codes_are_those_of_a_smaller_k(kind, k, smaller):
    coder, vectors = make_coder(kind), make_vectors()
    if smaller > k:
        k, smaller = smaller, k
    short = shortened(coder.encode(vectors, k), smaller)
    np.testing.assert_array_equal(short.toarray(), coder.encode(vectors, smaller).toarray())
    assert np.diff(short.indptr).max() <= smaller


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), cut=st.integers(1, 8))
def test_codes_do_not_depend_on_the_vectors_beside_them(kind, cut):
    coder, vectors = make_coder(kind), make_vectors()
    whole = coder.encode(vectors).toarray()
    apart = np.vstack([coder.encode(part).toarray() for part in (vectors[:cut], vectors[cut:])])
    # Rounding may turn a step of FISTA another way; on the whole they agree.
    np.testing.assert_allclose(whole, apart, atol=1e-2 if kind == "fista" else 1e-5)


def test_blocks_join_to_the_same_codes(monkeypatch):
    coder, vectors = make_coder(), make_vectors(50)
    whole = coder.encode(vectors).toarray()
    monkeypatch.setattr("sempa_mlx.encoder.sparse.BLOCK_VALUES", 40)
    np.testing.assert_allclose(coder.encode(vectors).toarray(), whole, atol=1e-6)


def test_no_vectors_have_no_codes():
    codes = make_coder().encode(np.empty((0, 6), np.float32))
    assert codes.shape == (0, 15)


def test_cosines_of_codes_are_those_of_scipy():
    coder = make_coder()
    left, right = coder.encode(make_vectors(seed=2)), coder.encode(make_vectors(seed=3))
    dense = left.toarray().astype(float), right.toarray().astype(float)
    lengths = np.linalg.norm(dense[0], axis=1) * np.linalg.norm(dense[1], axis=1)
    np.testing.assert_allclose(
        code_cosines(left, right), (dense[0] * dense[1]).sum(axis=1) / lengths, rtol=1e-6
    )
    empty = csr_array((9, 15), dtype=np.float32)
    np.testing.assert_array_equal(code_cosines(left, empty), np.zeros(9))


@pytest.mark.parametrize("k", [0, -1, 16])
def test_k_beyond_the_latents_is_refused(k):
    with pytest.raises(UsageError, match="1 to 15"):
        make_coder().encode(make_vectors(), k)


def test_vectors_of_another_length_are_refused():
    with pytest.raises(UsageError, match="6 numbers"):
        make_coder().encode(make_vectors(dim=7))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_counted(bad):
    vectors = make_vectors()
    vectors[[2, 5], 1] = bad
    with pytest.raises(DataError, match="2 of 9") as caught:
        make_coder().encode(vectors)
    assert caught.value.problems[0].evidence == "the first is number 3"
