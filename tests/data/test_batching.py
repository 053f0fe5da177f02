import math
from itertools import chain, combinations, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.data.batching import (
    WINDOW_BATCHES,
    batches_by_length,
    cut_by_length,
    epoch_order,
    fill_in_order,
    group_by_length,
    spread,
    step_batches,
)

FEW = settings(max_examples=200, deadline=None, derandomize=True)
LENGTHS = st.lists(st.integers(1, 60), max_size=40)
BUDGET = st.integers(1, 200)


def test_groups_by_hand():
    """Sorted by length: 2 2 | 3 4 | 9. Two rows of 2 fill 4 of 8; a third of 3 would need 9."""
    assert group_by_length([3, 2, 9, 4, 2], token_budget=8) == [[1, 4], [0, 3], [2]]


def test_nothing_makes_no_groups():
    assert group_by_length([], token_budget=8) == []


def test_the_budget_may_be_filled_to_the_brim():
    assert group_by_length([4, 4, 4], token_budget=12) == [[0, 1, 2]]
    assert group_by_length([4, 4, 4], token_budget=11) == [[0, 1], [2]]


@FEW
@given(lengths=LENGTHS, budget=BUDGET)
def test_without_padding_a_group_is_as_full_as_order_allows(lengths, budget):
    groups = fill_in_order(lengths, budget)
    assert sorted(chain.from_iterable(groups)) == list(range(len(lengths)))
    sizes = [[lengths[index] for index in group] for group in groups]
    in_order = list(chain.from_iterable(sizes))
    assert in_order == sorted(lengths)
    assert all(sum(group) <= budget or len(group) == 1 for group in sizes)
    assert all(sum(group) + after[0] > budget for group, after in pairwise(sizes))


@FEW
@given(lengths=LENGTHS, budget=BUDGET)
def test_each_index_stands_in_exactly_one_group(lengths, budget):
    groups = group_by_length(lengths, budget)
    assert sorted(chain.from_iterable(groups)) == list(range(len(lengths)))
    assert all(groups)


@FEW
@given(lengths=LENGTHS, budget=BUDGET)
def test_only_a_lone_item_may_pass_the_budget(lengths, budget):
    for group in group_by_length(lengths, budget):
        padded = len(group) * max(lengths[index] for index in group)
        assert padded <= budget or len(group) == 1


@FEW
@given(lengths=LENGTHS, budget=BUDGET)
def test_batches_hold_the_items_themselves(lengths, budget):
    words = ["x" * length for length in lengths]
    groups = group_by_length(lengths, budget)
    assert batches_by_length(words, len, budget) == [[words[i] for i in g] for g in groups]


def test_items_are_spread_evenly():
    assert spread("abcdefghij", 4) == ["a", "c", "f", "h"]
    assert spread("abc", 3) == spread("abc", 9) == ["a", "b", "c"]
    assert spread("abc", 0) == spread("", 2) == []


def test_items_of_one_token_fill_the_budget():
    assert cut_by_length([1, 1, 1, 1], group_cost=1, token_budget=4) == [[0, 1, 2, 3]]
    assert cut_by_length([1, 1, 1, 1], group_cost=1, token_budget=3) == [[0], [1, 2, 3]]


def test_cuts_by_hand():
    """Two of 3 and one of 20: apart they cost 6 + 20 and two groups, together 60 and one."""
    assert cut_by_length([3, 20, 3], group_cost=10) == [[0, 2], [1]]
    assert cut_by_length([3, 20, 3], group_cost=100) == [[0, 2, 1]]
    assert cut_by_length([], group_cost=1) == []


@FEW
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    group_cost=st.integers(0, 60),
    budget=st.integers(1, 120) | st.just(math.inf),
)
def test_no_other_cut_costs_less(lengths, group_cost, budget):
    """All ways to cut the sorted lengths, tried one by one."""

    def cost(groups):
        fits = all(len(group) == 1 or len(group) * max(group) <= budget for group in groups)
        return sum(len(group) * max(group) + group_cost for group in groups) if fits else math.inf

    ordered = sorted(lengths)
    least = min(
        cost([ordered[a:b] for a, b in pairwise((0, *inner, len(ordered)))])
        for size in range(len(ordered))
        for inner in combinations(range(1, len(ordered)), size)
    )
    found = cut_by_length(lengths, group_cost, budget)
    assert sorted(chain(*found)) == list(range(len(lengths)))
    assert cost([[lengths[index] for index in group] for group in found]) == least


@given(lengths=LENGTHS, budget=BUDGET)
def test_groups_go_from_short_to_long_and_could_not_be_joined(lengths, budget):
    groups = group_by_length(lengths, budget)
    flat = [lengths[index] for group in groups for index in group]
    assert flat == sorted(flat)
    for left, right in pairwise(groups):
        assert (len(left) + 1) * lengths[right[0]] > budget


def test_equal_lengths_keep_their_order():
    assert group_by_length([5, 5, 5, 5], token_budget=10) == [[0, 1], [2, 3]]


@FEW
@given(
    lengths=st.lists(st.integers(1, 99), max_size=120),
    size=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 9),
)
def test_an_epoch_is_cut_into_batches_of_one_size_but_the_last(lengths, size, seed, epoch):
    batches = step_batches(lengths, size, seed, epoch)
    assert sorted(chain.from_iterable(batches)) == list(range(len(lengths)))
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(batches)
    assert batches == step_batches(lengths, size, seed, epoch)


@FEW
@given(size=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_window_is_a_random_sample_and_its_batches_are_of_like_length(size, seed):
    """Lengths equal to the index: inside a window, no batch overlaps another."""
    count = 2 * WINDOW_BATCHES * size
    batches = step_batches(range(count), size, seed, 0)
    order = epoch_order(count, seed, 0)
    for half in (0, 1):
        window = batches[half * WINDOW_BATCHES : (half + 1) * WINDOW_BATCHES]
        taken = order[half * count // 2 : (half + 1) * count // 2]
        assert sorted(chain.from_iterable(window)) == sorted(taken)
        spans = sorted((min(batch), max(batch)) for batch in window)
        assert all(left[1] < right[0] for left, right in pairwise(spans))


def test_batches_do_not_come_in_order_of_length():
    firsts = [batch[0] for batch in step_batches(range(160), 10, 0, 0)]
    assert firsts not in (sorted(firsts), sorted(firsts, reverse=True))


def test_an_order_is_the_same_on_every_machine_and_in_every_version():
    """A run that is continued elsewhere goes on through the same rows."""
    assert epoch_order(6, 3, 1) == [1, 2, 0, 4, 5, 3]
    lengths = [5, 1, 4, 2, 3, 9, 7, 8, 6, 10]
    assert step_batches(lengths, 2, 3, 1) == [[6, 7], [1, 3], [0, 8], [5, 9], [4, 2]]
    assert step_batches(lengths[::-1], 3, 0, 2) == [[8, 6, 5], [7, 1, 3], [2, 4, 0], [9]]
    assert WINDOW_BATCHES == 16, "a new number is a new order: say so in CHANGELOG.md"
