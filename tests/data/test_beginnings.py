"""The choice of beginnings that rows share."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.data.beginnings import shared_beginnings

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=5)


def saved(rows, lengths, price):
    """Count the tokens that a choice saves."""
    groups = {}
    for row, length in zip(rows, lengths, strict=True):
        if length:
            groups.setdefault(tuple(row[:length]), []).append(row)
    return sum((len(each) - 1) * len(begin) - price for begin, each in groups.items())


def every_choice(rows):
    """Yield all choices in which no beginning begins another."""
    for lengths in itertools.product(*(range(len(row)) for row in rows)):
        begins = {tuple(row[:n]) for row, n in zip(rows, lengths, strict=True) if n}
        pairs = itertools.permutations(begins, 2)
        if not any(long[: len(short)] == short for short, long in pairs):
            yield lengths


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ROWS, st.integers(0, 3))
def test_nothing_saves_more_than_the_choice(rows, price):
    lengths = shared_beginnings(rows, price)
    assert all(0 <= length < len(row) for row, length in zip(rows, lengths, strict=True))
    assert saved(rows, lengths, price) == max(
        saved(rows, choice, price) for choice in every_choice(rows)
    )


@pytest.mark.parametrize("price", [0, 1, 5])
def test_rows_with_nothing_in_common_share_nothing(price):
    assert shared_beginnings([[1, 2], [2, 2], [3]], price) == [0, 0, 0]


def test_a_beginning_has_to_be_worth_its_price():
    rows = [[1, 2, 3, 4], [1, 2, 3, 5], [7, 8]]
    assert shared_beginnings(rows, 2) == [3, 3, 0]
    assert shared_beginnings(rows, 3) == [0, 0, 0]


def test_equal_rows_keep_their_last_token():
    assert shared_beginnings([[1, 2, 3]] * 3, 0) == [2, 2, 2]


def test_long_equal_rows_need_no_deep_recursion():
    assert shared_beginnings([list(range(5000))] * 3, 0) == [4999] * 3


def test_the_order_of_rows_does_not_matter():
    random = np.random.default_rng(0)
    rows = random.integers(0, 3, (40, 6)).tolist()
    shuffled = random.permutation(len(rows))
    expected = np.array(shared_beginnings(rows, 1))[shuffled]
    assert shared_beginnings([rows[index] for index in shuffled], 1) == expected.tolist()
