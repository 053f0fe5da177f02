import functools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sempa_mlx.encoder import dense_search
from sempa_mlx.encoder.dense_search import read_dense
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.ranking import best_rows
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.encoder.store import embed_to_file
from sempa_mlx.errors import DataError
from tests.tiny import tiny_loaded

TEXTS = [f"Sentence number {number}" for number in range(20)]


@functools.cache
def loaded():
    return tiny_loaded()


def written(tmp_path, **changes):
    out = tmp_path / "a.npy"
    embed_to_file(Encoder(loaded(), EncoderSettings(**changes)), TEXTS, out, file_format="npy")
    return out


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(arrays(np.float32, st.integers(0, 40), elements=st.integers(-3, 3).map(float)), st.data())
@settings(max_examples=100, deadline=None)
def test_best_rows_are_those_of_a_stable_sort(scores, data):
    k = data.draw(st.integers(0, 45))
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]
    assert best_rows(scores, k) == [(row, float(scores[row])) for row in order]


@pytest.mark.parametrize("block", [1, 700, 1 << 24])
@pytest.mark.parametrize("normalize", [True, False])
def test_hits_are_those_of_float64_cosines(tmp_path, monkeypatch, normalize, block):
    monkeypatch.setattr(dense_search, "BLOCK_BYTES", block)
    path = written(tmp_path, normalize=normalize)
    rows = unit(np.load(path).astype(np.float64))
    queries = unit(np.random.default_rng(0).normal(size=(6, 32)))
    found = read_dense(path).search(queries.astype(np.float32), 7)
    for hits, query in zip(found, queries, strict=True):
        cosines = rows @ query
        np.testing.assert_allclose(
            [score for _, score in hits], np.sort(cosines)[::-1][:7], atol=1e-6
        )
        np.testing.assert_allclose(
            [score for _, score in hits], [cosines[row] for row, _ in hits], atol=1e-6
        )


def test_equal_vectors_keep_their_order_whatever_blas_rounds(tmp_path):
    draw = np.random.default_rng(0)
    rows = unit(draw.normal(size=(3, 576))).astype(np.float32)
    vectors = rows[draw.integers(0, 3, 103)]
    about = {"count": 103, "dim": 576, "normalize": True}
    np.save(tmp_path / "a.npy", vectors)
    (tmp_path / "a.json").write_text(json.dumps(about))
    queries = unit(draw.normal(size=(5, 576))).astype(np.float32)
    for hits, query in zip(
        read_dense(tmp_path / "a.npy").search(queries, 90), queries, strict=True
    ):
        cosines = [float(np.dot(row.astype(float), query.astype(float))) for row in rows]
        kind = [int(np.argmax((rows == row).all(axis=1))) for row in vectors]
        order = sorted(range(103), key=lambda at: (-cosines[kind[at]], at))[:90]
        assert [row for row, _ in hits] == order


def test_vectors_that_are_not_finite_are_an_error(tmp_path):
    path = written(tmp_path)
    vectors = np.load(path)
    vectors[[2, 5], 1] = np.nan, np.inf
    np.save(path, vectors)
    with pytest.raises(DataError, match="2 of 20 vectors hold NaN or infinity"):
        read_dense(path).search(vectors[:2], 3)


def changed(path, **changes):
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | changes))


def test_a_store_that_is_not_whole_is_refused(tmp_path):
    path = written(tmp_path)
    whole = path.read_bytes()
    for length in (0, 5, 60, 500, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="not a file of vectors"):
            read_dense(path)
    for other in (np.ones(3, np.float32), np.ones((2, 3)), np.array([{}], dtype=object)):
        np.save(path, other)
        with pytest.raises(DataError, match="not a file of vectors"):
            read_dense(path)
    with path.open("wb") as handle:
        np.savez(handle, vectors=np.ones((2, 3), np.float32))
    with pytest.raises(DataError, match="not a file of vectors"):
        read_dense(path)


def test_the_file_beside_must_belong_to_the_vectors(tmp_path):
    path = written(tmp_path)
    changed(path, count=21)
    with pytest.raises(DataError, match="belongs to 21 vectors of 32 numbers") as caught:
        read_dense(path)
    assert caught.value.problems[0].evidence == "a.npy has 20 of 32"
    for text in ("", "[]", "{}", "not json"):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(DataError, match="does not say what made"):
            read_dense(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(DataError, match="no such file") as caught:
        read_dense(path)
    assert caught.value.problems[0].place == str(tmp_path / "a.json")
    with pytest.raises(DataError, match="no such file"):
        read_dense(tmp_path / "b.npy")
