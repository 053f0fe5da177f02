"""Statistics of codes against their definitions."""

import math

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import entropy

from sempa_mlx.evaluation import code_statistics as module
from sempa_mlx.evaluation.code_statistics import code_statistics
from tests.encoder.test_sparse import KINDS, make_coder, make_vectors


@pytest.mark.parametrize("block", [2, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_equal_their_definitions(kind, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    coder, vectors = make_coder(kind), make_vectors(25)
    codes = coder.encode(vectors, 3)
    found = code_statistics(coder, vectors, codes)
    dense = codes.toarray()
    uses = (dense > 0).sum(axis=0)
    rebuilt = coder.decode(codes).astype(np.float64)
    missed = sum(((x - y) ** 2).sum() for x, y in zip(vectors, rebuilt, strict=True))
    assert found.unexplained == pytest.approx(missed / (vectors.var(axis=0).sum() * 25), rel=1e-5)
    assert found.dead_share == sum(use == 0 for use in uses) / coder.hidden
    assert found.usage_entropy == pytest.approx(entropy(uses), rel=1e-12)
    assert found.effective_latents == pytest.approx(math.exp(entropy(uses)), rel=1e-12)
    assert found.mean_values == (dense > 0).sum() / 25


def of(dense, vectors=None):
    coder = make_coder(hidden=4)
    given = make_vectors(len(dense)) if vectors is None else vectors
    return code_statistics(coder, given, csr_array(np.array(dense, dtype=np.float32)))


def test_even_use_has_as_many_effective_latents_as_fire():
    found = of([[1, 0, 0, 2], [0, 5, 0, 0], [0, 0, 9, 0], [0.1, 1, 1, 1]])
    assert found.effective_latents == pytest.approx(4)
    assert found.dead_share == 0
    assert found.mean_values == 2


def test_one_latent_for_all_has_no_entropy():
    found = of([[0, 1, 0, 0], [0, 2, 0, 0]])
    assert (found.usage_entropy, found.effective_latents, found.dead_share) == (0, 1, 0.75)


def test_a_stored_zero_is_no_firing():
    codes = csr_array((np.array([0.0, 1.0], np.float32), [0, 1], [0, 1, 2]), shape=(2, 4))
    found = code_statistics(make_coder(hidden=4), make_vectors(2), codes)
    assert (found.mean_values, found.dead_share) == (0.5, 0.75)


def test_what_is_not_defined_is_nan():
    silent = of(np.zeros((3, 4)))
    assert math.isnan(silent.usage_entropy)
    assert math.isnan(silent.effective_latents)
    assert (silent.dead_share, silent.mean_values) == (1, 0)
    alike = of([[1, 0, 0, 0]] * 2, np.ones((2, 6), dtype=np.float32))
    assert math.isnan(alike.unexplained)
    nothing = of(np.zeros((0, 4)), np.zeros((0, 6), dtype=np.float32))
    assert all(map(math.isnan, (nothing.unexplained, nothing.dead_share, nothing.mean_values)))


def test_a_code_for_each_vector():
    with pytest.raises(ValueError, match="3 vectors, but 2 codes"):
        of(np.zeros((2, 4)), make_vectors(3))
