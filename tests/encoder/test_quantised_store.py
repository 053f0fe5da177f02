"""Codes of a byte or a bit: what they say of the vectors, and what a search through them finds."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.encoder import quantised_store
from sempa_mlx.encoder.dense_search import DenseStore, read_dense
from sempa_mlx.encoder.quantised_store import PRECISIONS, codes_path, quantise, read_quantised
from sempa_mlx.errors import DataError


def written(folder, rows=500, dim=36, seed=0, normalize=True):
    """Vectors around a common mean in groups, as those of sentences are."""
    draw = np.random.default_rng(seed)
    groups = draw.normal(size=(rows // 5, dim))
    vectors = 2 + groups[np.arange(rows) % len(groups)] + 0.3 * draw.normal(size=(rows, dim))
    if normalize:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(folder / "a.npy", vectors.astype(np.float32))
    about = {"count": rows, "dim": dim, "normalize": normalize, "vectors": "k", "ids": "i"}
    (folder / "a.json").write_text(json.dumps(about))
    return folder / "a.npy"


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def queries_of(path, count=20, seed=1):
    vectors = np.load(path)[:count]
    noise = np.random.default_rng(seed).normal(scale=0.02, size=vectors.shape)
    return unit(unit(vectors) + noise).astype(np.float32)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("block", [7, 1 << 15])
def test_a_search_through_codes_finds_what_an_exact_one_finds(
    tmp_path, precision, normalize, block, monkeypatch
):
    monkeypatch.setattr(quantised_store, "ROWS", block)
    path = written(tmp_path, normalize=normalize)
    store = read_dense(path)
    quantise(store, path, precision)
    queries = queries_of(path)
    found = read_quantised(store, path, precision).search(queries, 5)
    exact = store.search(queries, 5)
    shared = [
        len({row for row, _ in ours} & {row for row, _ in theirs}) / 5
        for ours, theirs in zip(found, exact, strict=True)
    ]
    assert np.mean(shared) >= {"int8": 1.0, "binary": 0.97}[precision]
    for ours, theirs in zip(found, exact, strict=True):
        scores = dict(theirs)
        for row, score in ours:
            assert score == pytest.approx(scores.get(row, score), abs=1e-9)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_with_all_rows_as_candidates_it_is_exact(tmp_path, precision):
    path = written(tmp_path, rows=60)
    store = read_dense(path)
    quantise(store, path, precision)
    queries = queries_of(path)
    codes = read_quantised(store, path, precision)
    assert codes.search(queries, 10, rescore=6) == store.search(queries, 10)
    assert codes.search(queries, 100) == store.search(queries, 100)


def test_levels_are_the_nearest_of_255(tmp_path):
    path = written(tmp_path)
    store = read_dense(path)
    codes = read_quantised(store, quantise(store, path, "int8").with_name("a.npy"), "int8")
    back = codes.middle + codes.step * codes.codes
    vectors = np.load(path)
    assert (np.abs(back - vectors) <= 0.5001 * codes.step).all()
    span = vectors.max(axis=0) - vectors.min(axis=0)
    np.testing.assert_allclose(codes.step, span / 254, rtol=1e-4)


@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_hamming_distance_is_that_of_the_signs(rows, dim, seed):
    draw = np.random.default_rng(seed)
    vectors = unit(draw.normal(size=(rows, dim))).astype(np.float32)
    queries = unit(draw.normal(size=(3, dim))).astype(np.float32)
    store = DenseStore(vectors, {"normalize": True}, None)
    mean = vectors.mean(axis=0)
    packed = np.packbits(vectors > mean, axis=1)
    codes = quantised_store.QuantisedStore(store, "binary", packed, mean, mean)
    expected = -((queries > mean)[:, None] != (vectors > mean)[None]).sum(axis=2)
    assert np.array_equal(codes._hamming(queries, packed), expected)


def test_sizes_are_a_byte_and_a_bit(tmp_path):
    path = written(tmp_path, rows=500, dim=36)
    store = read_dense(path)
    for precision, width in (("int8", 36), ("binary", 5)):
        out = quantise(store, path, precision)
        assert out == codes_path(path, precision)
        assert out.stat().st_size - 128 == 500 * width


def test_vectors_that_are_not_finite_leave_no_codes(tmp_path):
    path = written(tmp_path)
    vectors = np.load(path)
    vectors[3, 1] = np.nan
    np.save(path, vectors)
    with pytest.raises(DataError, match="NaN or infinity"):
        quantise(read_dense(path), path, "int8")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.json", "a.npy"]


@pytest.mark.parametrize("name", ["a.int8.npy", "a.int8.json"])
@pytest.mark.parametrize("size", [None, 0, 40, 100, 200])
def test_codes_that_are_not_whole_are_refused(tmp_path, name, size):
    path = written(tmp_path)
    store = read_dense(path)
    quantise(store, path, "int8")
    part = tmp_path / name
    content = part.read_bytes()
    part.unlink() if size is None else part.write_bytes(content[:size])
    with pytest.raises(DataError, match=r"codes of (a\.npy|other vectors)") as caught:
        read_quantised(store, path, "int8")
    assert caught.value.problems[0].fix.endswith("--update --precision int8")


@pytest.mark.parametrize("key", ["vectors", "ids", "post"])
def test_codes_of_other_vectors_are_refused(tmp_path, key):
    path = written(tmp_path)
    quantise(read_dense(path), path, "binary")
    about = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(about | {key: "another"}))
    with pytest.raises(DataError, match="codes of other vectors"):
        read_quantised(read_dense(path), path, "binary")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_vectors_have_no_hits(tmp_path, precision):
    np.save(tmp_path / "a.npy", np.zeros((0, 8), dtype=np.float32))
    about = {"count": 0, "dim": 8, "normalize": True}
    (tmp_path / "a.json").write_text(json.dumps(about))
    store = read_dense(tmp_path / "a.npy")
    quantise(store, tmp_path / "a.npy", precision)
    query = np.ones((1, 8), dtype=np.float32) / 8**0.5
    assert read_quantised(store, tmp_path / "a.npy", precision).search(query, 5) == [[]]
