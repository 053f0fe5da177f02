"""Recall and searches against loops and full sorts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from sempa_mlx.data.records import PreferenceRecord
from sempa_mlx.evaluation.retrieval import (
    code_search,
    dense_search,
    measure_retrieval,
    recalls_at,
    retrieval_task,
)
from sempa_mlx.evaluation.stats import cosines

FEW = settings(max_examples=40, deadline=None, derandomize=True)
FOUND = [np.array([4, 2, 7]), np.array([1, 0, 5]), np.array([], dtype=np.int64)]


def test_recall_is_the_share_of_what_is_sought():
    sought = [{7}, {1, 5, 6, 0}, {3}]
    assert recalls_at(FOUND, sought, 3).tolist() == [1, 0.75, 0]
    assert recalls_at(FOUND, sought, 2).tolist() == [0, 0.5, 0]


def test_a_query_seeks_something():
    with pytest.raises(ValueError, match="seeks nothing"):
        recalls_at(FOUND, [{7}, set(), {3}], 3)
    with pytest.raises(ValueError, match="shorter"):
        recalls_at(FOUND, [{7}], 3)


def test_a_measure_has_mean_error_and_median_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("sempa_mlx.evaluation.retrieval.time.perf_counter", lambda: clock[0])

    def search(query):
        clock[0] += (3.0, 90.0, 2.0)[query]
        return FOUND[query]

    found = measure_retrieval(search, [{4}, {9}, {2}], 11)
    assert (found.num_queries, found.num_candidates) == (3, 11)
    assert found.recall == pytest.approx(1 / 3)
    assert found.standard_error == pytest.approx(math.sqrt(2 / 9 * 3 / 2 / 3))  # by hand
    assert found.seconds == 3, "one slow query of three does not move the median"


def test_what_is_not_defined_is_nan():
    none = measure_retrieval(lambda _: FOUND[0], [], 0)
    assert all(map(math.isnan, (none.recall, none.standard_error, none.seconds)))
    one = measure_retrieval(lambda _: FOUND[0], [{4}], 5)
    assert one.recall == 1
    assert math.isnan(one.standard_error)


def test_rows_become_queries_and_candidates():
    rows = [("a", "b", "c"), ("d", "c", "a"), ("a", "e", "b")]
    records = [
        PreferenceRecord("prompt", tuple(rest), line, anchor)
        for line, (anchor, *rest) in enumerate(rows)
    ]
    task = retrieval_task(records)
    assert task.queries == ("a", "d")
    assert task.candidates == ("b", "c", "a", "e")
    assert task.sought == ({0, 3}, {1})


def naive(queries, candidates, at):
    """The best candidates of each query by a full sort of float64 cosines, with the cosines."""
    found = []
    for query in queries:
        scores = cosines(np.repeat(query[None], len(candidates), axis=0), candidates)
        order = sorted(range(len(candidates)), key=lambda row: -scores[row])[:at]
        found.append((order, [scores[row] for row in order]))
    return found


@FEW
@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 14))
def test_dense_search_is_a_full_sort(seed, count, at):
    draw = np.random.default_rng(seed)
    queries, candidates = draw.standard_normal((3, 5)), 9 * draw.standard_normal((count, 5))
    search = dense_search(queries, candidates, at)
    for query, (order, _) in enumerate(naive(queries, candidates, at)):
        assert search(query).tolist() == order


@FEW
@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 14))
def test_code_search_is_a_full_sort_of_those_that_share_a_latent(seed, count, at):
    draw = np.random.default_rng(seed)
    queries, candidates = (
        draw.random((rows, 9)) * (draw.random((rows, 9)) < 0.3) for rows in (3, count)
    )
    search = code_search(csr_array(queries), csr_array(candidates), at)
    for query, (order, scores) in enumerate(naive(queries, candidates, at)):
        assert search(query).tolist() == [
            row for row, score in zip(order, scores, strict=True) if score > 0
        ]
