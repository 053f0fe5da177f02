"""Every way of making embeddings small against its definition; bytes by hand."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from sempa_mlx.encoder.sparse import SparseCoder
from sempa_mlx.errors import DataError
from sempa_mlx.evaluation.compression import (
    ScoredRows,
    _all,
    bytes_a_value,
    compare_compressions,
)
from tests.encoder.test_sparse import KINDS, make_coder

DIM = 12
DRAW = np.random.default_rng(0)
VECTORS = (DRAW.standard_normal((40, DIM)) * np.arange(1, DIM + 1) + 4).astype(np.float32)
FIT = (DRAW.standard_normal((60, DIM)) * np.arange(1, DIM + 1) + 4).astype(np.float32)
LEFT = DRAW.integers(0, 40, 50)
RIGHT = (LEFT + DRAW.integers(1, 40, 50)) % 40  # no row beside itself: 1 up to rounding
GOLD = DRAW.integers(0, 6, 50).astype(np.float64)
SETS = (ScoredRows("all", LEFT, RIGHT, GOLD), ScoredRows("few", LEFT[:9], RIGHT[:9], GOLD[:9]))
KS = (4, 1, 2, 64)


@pytest.fixture(scope="module")
def found():
    coders = {kind: make_coder(kind, dim=DIM, hidden=30) for kind in KINDS}
    scores = compare_compressions(VECTORS, SETS, ks=KS, fit=FIT, coders=coders)
    return {(score.system, score.setting): score for score in scores}


def half(rows):
    rows = rows.astype(np.float64)
    lengths = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return (rows / lengths).astype(np.float16).astype(np.float64)


def scored(rows):
    """Spearman of plain cosines, by scipy, over both sets."""
    rows = rows.astype(np.float64)
    found = []
    for pairs in SETS:
        cosine = [
            0.0 if not (a.any() and b.any()) else a @ b / math.sqrt((a @ a) * (b @ b))
            for a, b in zip(rows[pairs.left], rows[pairs.right], strict=True)
        ]
        ties = np.round(cosine, 12)
        defined = len(set(ties)) > 1
        found.append(100 * spearmanr(pairs.gold, ties)[0] if defined else math.nan)
    return pytest.approx(found, abs=0.3, nan_ok=True)


def strongest(rows, k):
    found = np.zeros_like(rows)
    for row, kept in zip(rows, found, strict=True):
        for place in sorted(range(DIM), key=lambda place: -abs(row[place]))[:k]:
            kept[place] = row[place]
    return found


def test_every_way_keeps_what_it_says(found):
    centred = VECTORS - FIT.mean(axis=0)
    standard = centred / FIT.std(axis=0)
    basis = np.linalg.svd(FIT - FIT.mean(axis=0))[2]
    expected = {
        ("dense", None): (VECTORS, 48),
        ("dense fp16", None): (half(VECTORS), 24),
        ("dense centred", None): (centred, 48),
        ("dense standardized", None): (standard, 48),
        ("top k standardized", 1): (half(strongest(standard, 1)), 4),
        ("binary centred", None): (np.where(centred > 0, 1, -1), 2),
        ("truncated", 2): (half(VECTORS[:, :2]), 4),
        ("truncated", 8): (half(VECTORS[:, :8]), 16),
        ("PCA", 2): (half(centred @ basis[:2].T), 4),
        ("PCA", 8): (half(centred @ basis[:8].T), 16),
        ("top k", 2): (half(strongest(VECTORS, 2)), 8),
        ("top k centred", 4): (half(strongest(centred, 4)), 16),
    }
    for key, (rows, num_bytes) in expected.items():
        assert found[key].spearman == scored(rows), key
        assert found[key].num_bytes == num_bytes, key
        assert found[key].statistics is None


def test_numbers_are_those_that_the_bytes_hold():
    coders = {"coder": make_coder(dim=DIM, hidden=30)}
    halves = 0
    for small in _all(VECTORS, (2, 4), FIT, coders):
        kept = small.kept if isinstance(small.kept, np.ndarray) else small.kept.data
        rounded = kept.astype(np.float16).astype(np.float32)
        num_values = (small.kept != 0).sum(axis=1).max()
        match small.system.split()[0]:
            case "dense" if small.system != "dense fp16":
                assert small.num_bytes == 4 * DIM
            case "int8":
                assert all(len(np.unique(column)) <= 256 for column in kept.T)
            case "binary":
                assert len(np.unique(kept)) == 2
            case "top" | "coder":
                assert np.array_equal(kept, rounded)
                assert num_values <= small.setting == small.num_bytes / 4
            case _:
                halves += 1
                assert np.array_equal(kept, rounded)
                assert kept.shape[1] * 2 == small.num_bytes
    assert halves == 5


def test_a_byte_a_number_has_256_levels_between_the_ends_of_the_fit(found):
    for name, mean in (("int8", 0), ("int8 centred", FIT.mean(axis=0))):
        units, fit = (
            rows / np.linalg.norm(rows, axis=1, keepdims=True)
            for rows in (VECTORS - mean, FIT - mean)
        )
        low, high = fit.min(axis=0), fit.max(axis=0)
        levels = np.floor((units - low) / (high - low) * 255).clip(0, 255)
        kept = levels - 128 if name == "int8" else low + (levels + 0.5) * (high - low) / 255
        assert found[name, None].spearman == scored(kept)
        assert found[name, None].num_bytes == DIM


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_scored_at_every_k_there_is(found, kind):
    coder = make_coder(kind, dim=DIM, hidden=30)
    assert [k for name, k in found if name == kind] == [1, 2, 4]
    for k in (1, 2, 4):
        score, codes = found[kind, k], coder.encode(VECTORS, k)
        assert score.num_bytes == 4 * k
        rows = codes.toarray()
        rows[rows.any(axis=1)] = half(rows[rows.any(axis=1)])
        assert score.spearman == scored(rows)
        assert score.statistics.mean_values == codes.nnz / 40
        assert 0 < score.statistics.effective_latents <= 30


def test_settings_that_a_way_does_not_have_are_left_out(found):
    settings = {name: [k for each, k in found if each == name] for name, _ in found}
    assert settings["truncated"] == settings["PCA"] == [2, 4, 8]
    for name in ("top k", "top k centred", "top k standardized"):
        assert settings[name] == [1, 2, 4]


def test_pca_has_no_more_dimensions_than_its_texts_span():
    scores = compare_compressions(VECTORS, SETS, ks=(1, 2, 4), fit=FIT[:5])
    assert [score.setting for score in scores if score.system == "PCA"] == [2, 4]


def test_without_texts_to_fit_to_nothing_is_fitted():
    names = {score.system for score in compare_compressions(VECTORS, SETS, ks=(2,))}
    assert names == {"dense", "dense fp16", "truncated", "top k"}


def test_an_undefined_score_is_nan():
    same = ScoredRows("same", LEFT, RIGHT, np.ones(50))
    scores = compare_compressions(VECTORS, [same], ks=(2,), fit=FIT)
    assert all(math.isnan(score.spearman[0]) for score in scores)


def test_a_vector_that_is_not_finite_is_refused():
    broken = VECTORS.copy()
    broken[3, 3] = np.nan
    for vectors, fit in ((broken, FIT), (VECTORS, broken)):
        with pytest.raises(DataError, match="NaN"):
            compare_compressions(vectors, SETS, fit=fit)


def test_indices_beyond_two_bytes_cost_four():
    assert (bytes_a_value(1 << 16), bytes_a_value((1 << 16) + 1)) == (4, 6)


def test_a_coder_of_unit_atoms_is_the_vector_itself():
    """Atoms e_i and -e_i keep positive and negative parts apart: all of it at k = dim."""
    eye = np.eye(DIM, dtype=np.float32)
    whole = make_coder(dim=DIM, hidden=2 * DIM)
    coder = SparseCoder(
        **{name: getattr(whole, name) for name in ("kind", "k", "vectors", "num_texts")},
        **{name: getattr(whole, name) for name in ("penalty",)},
        gain=1.0,
        scale=whole.scale * 0 + 1,
        centre=np.zeros(DIM, dtype=np.float32),
        atoms=np.concatenate([eye, -eye]),
        bias=np.zeros(2 * DIM, dtype=np.float32),
    )
    (score,) = (
        each
        for each in compare_compressions(VECTORS, SETS, ks=(DIM,), coders={"unit": coder})
        if each.system == "unit"
    )
    assert score.statistics.unexplained == pytest.approx(0, abs=1e-9)
    assert score.statistics.mean_values == DIM
