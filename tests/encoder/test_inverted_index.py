import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_array

from sempa_mlx.encoder.inverted_index import InvertedIndex
from sempa_mlx.encoder.sparse import code_cosines
from sempa_mlx.errors import UsageError
from tests.encoder.codes import drawn_codes


def by_brute_force(codes, query):
    """Cosines of a dense float64 product; rows by cosine, empty rows last, then by row."""
    lengths = np.linalg.norm(codes, axis=1) * np.linalg.norm(query)
    with np.errstate(invalid="ignore"):
        cosines = np.where(lengths > 0, codes @ query / lengths, 0.0)
    return cosines


def test_three_texts_by_hand():
    codes = csr_array(np.array([[3, 4, 0], [0, 0, 0], [0, 0, 2], [0, 1, 0]], dtype=np.float32))
    query = csr_array(np.array([[0, 5, 0]], dtype=np.float32))
    (found,) = InvertedIndex(codes).search(query, 9)
    assert [row for row, _ in found] == [3, 0, 2, 1]
    np.testing.assert_allclose([score for _, score in found], [1, 0.8, 0, 0], atol=1e-12)


@pytest.mark.parametrize("k", [1, 5, 30, 99])
def test_hits_are_those_of_the_dense_product(k):
    codes, queries = drawn_codes(), drawn_codes(8, seed=1)
    found = InvertedIndex(codes).search(queries, k)
    dense = codes.toarray().astype(np.float64)
    for hits, query in zip(found, queries.toarray().astype(np.float64), strict=True):
        cosines = by_brute_force(dense, query)
        assert len({row for row, _ in hits}) == len(hits) == min(k, 30)
        best = np.sort(cosines)[::-1][: len(hits)]
        np.testing.assert_allclose([score for _, score in hits], best, atol=1e-12)
        np.testing.assert_allclose(
            [score for _, score in hits], [cosines[row] for row, _ in hits], atol=1e-12
        )


def test_scores_are_the_cosines_of_codes():
    codes = drawn_codes()
    query = codes[[5]]
    (found,) = InvertedIndex(codes).search(query, 30)
    scores = np.array([score for _, score in sorted(found)])
    same = csr_array(np.repeat(query.toarray(), 30, axis=0))
    np.testing.assert_allclose(scores, code_cosines(codes, same), atol=1e-6)
    assert found[0][0] == 5


small = st.integers(0, 3).map(float)


@settings(max_examples=120, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(0, 9), st.just(4)), elements=small),
    arrays(np.float32, 4, elements=small),
    st.integers(1, 12),
)
def test_ties_go_by_row_and_empty_codes_come_last(codes, query, k):
    """Squares of cosines of small whole numbers are fractions, so ties are exact."""
    (found,) = InvertedIndex(csr_array(codes)).search(csr_array(query[None]), k)
    products, squares = (codes @ query).astype(int), (codes.astype(int) ** 2).sum(axis=1)
    common = np.lcm.reduce([s for s in squares.tolist() if s] or [1])
    keys = [(-p * p * common // s if s else 1) for p, s in zip(products, squares, strict=True)]
    order = sorted(range(len(codes)), key=lambda row: (keys[row], row))[:k]
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    got = [row for row, _ in found]
    for expected, row in zip(order, got, strict=True):
        assert keys[row] == keys[expected]
    same = {tuple(code): [r for r in got if (codes[r] == code).all()] for code in codes}
    assert all(rows == sorted(rows) for rows in same.values()), "equal codes keep their order"
    np.testing.assert_allclose(
        scores,
        [np.sqrt(max(-keys[row], 0) / common / max(query @ query, 1)) for row in got],
        atol=1e-6,
    )


def test_equal_codes_keep_their_order():
    codes = csr_array(np.tile(np.array([[0.1, 0.7, 0], [0.3, 0, 0.3]], dtype=np.float32), (40, 1)))
    (found,) = InvertedIndex(codes).search(codes[[1]], 60)
    assert [row for row, _ in found] == [*range(1, 80, 2), *range(0, 40, 2)]


def test_a_query_without_values_is_like_nothing():
    codes = drawn_codes()
    (found,) = InvertedIndex(codes).search(csr_array((1, 50), dtype=np.float32), 5)
    assert [score for _, score in found] == [0.0] * 5
    assert [row for row, _ in found] == [0, 1, 2, 4, 5], "row 3 is empty"


def test_an_index_may_be_empty():
    index = InvertedIndex(csr_array((0, 5), dtype=np.float32))
    assert index.search(csr_array((2, 5), dtype=np.float32), 3) == [[], []]


def test_codes_are_left_as_they_were():
    codes, queries = drawn_codes(), drawn_codes(2, seed=1)
    before = codes.toarray(), queries.toarray()
    InvertedIndex(codes).search(queries, 3)
    np.testing.assert_array_equal(codes.toarray(), before[0])
    np.testing.assert_array_equal(queries.toarray(), before[1])


def test_only_postings_of_the_querys_latents_are_touched():
    index = InvertedIndex(drawn_codes())
    query = drawn_codes(1, seed=4)
    touched = set(query.indices.tolist())
    expected = index.search(query, 30)
    for latent in set(range(50)) - touched:
        index._values[index._ends[latent] : index._ends[latent + 1]] = np.nan
    assert index.search(query, 30) == expected


def test_what_cannot_be_searched_is_refused():
    index = InvertedIndex(drawn_codes())
    with pytest.raises(UsageError, match="queries of 49 latents in an index of 50"):
        index.search(drawn_codes(1, 49), 3)
    with pytest.raises(UsageError, match="k must be at least 1"):
        index.search(drawn_codes(1), 0)
