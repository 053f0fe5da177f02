"""Order and grouping: pure functions of lengths, seed and epoch. They know numbers, not texts."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

WINDOW_BATCHES = 16
Item = TypeVar("Item")


class Passes(NamedTuple):
    """Items grouped into forward passes, by index, and the tokens that run, padding included."""

    groups: list[list[int]]
    tokens: int


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return a permutation of range(count) that depends on nothing but (seed, epoch)."""
    permutation = np.random.default_rng([seed, epoch]).permutation(count)
    return [int(index) for index in permutation]


def step_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Cut an epoch into batches of rows of like length, in random order.

    The epoch is shuffled, rows are sorted by length inside windows of `WINDOW_BATCHES` batches, and
    the batches of a window are shuffled again: little padding, and every window is a random sample.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch; the last batch may be smaller.
        seed: of the run.
        epoch: from 0.

    Returns:
        Batches of indices into `lengths`; each index once.
    """
    order = epoch_order(len(lengths), seed, epoch)
    num_whole = len(order) - len(order) % batch_size
    random = np.random.default_rng([seed, epoch, 1])
    window = batch_size * WINDOW_BATCHES
    batches: list[list[int]] = []
    for start in range(0, num_whole, window):
        rows = sorted(order[start : min(start + window, num_whole)], key=lambda row: lengths[row])
        cut = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
        batches += [cut[place] for place in random.permutation(len(cut))]
    rest = order[num_whole:]
    return [*batches, rest] if rest else batches


def group_by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group indices so that no group's padded size passes the budget; short ones come first.

    Args:
        lengths: tokens of each item.
        token_budget: largest rows * longest row of a group. An item longer than the budget forms a
            group of its own.

    Returns:
        Groups of indices into `lengths`; each index once, neighbours of like length.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    groups: list[list[int]] = []
    for index in order:
        # Sorted ascending, so the newcomer is the longest of its group.
        if groups and (len(groups[-1]) + 1) * lengths[index] <= token_budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def fill_in_order(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group indices so that no group's tokens pass the budget, for passes without padding.

    Args:
        lengths: tokens of each item.
        token_budget: largest sum of a group. An item longer than it forms a group of its own.

    Returns:
        Groups of indices into `lengths`; each index once, short ones first.
    """
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if not groups or lengths[index] > room:
            groups.append([])
            room = token_budget
        groups[-1].append(index)
        room -= lengths[index]
    return groups


def cut_by_length(
    lengths: Sequence[int], group_cost: int, token_budget: float = math.inf
) -> list[list[int]]:
    """Group indices so that padding and the cost of groups are least together; short ones first.

    Args:
        lengths: tokens of each item.
        group_cost: what one more group costs, in tokens.
        token_budget: largest rows * longest row of a group. An item longer than the budget forms a
            group of its own.

    Returns:
        Groups of indices into `lengths`, each index once and neighbours of like length, that
        minimise the sum over groups of (rows * longest row + `group_cost`).
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    least = np.zeros(len(order) + 1)  # cost of the first n items
    starts = [0] * (len(order) + 1)  # where the last group of the first n items begins
    for end, index in enumerate(order, 1):
        longest = max(1, lengths[index])
        first = max(0, end - max(1, int(min(token_budget / longest, end))))
        costs = least[first:end] + np.arange(end - first, 0, -1) * longest + group_cost
        starts[end] = first + int(costs.argmin())
        least[end] = costs[starts[end] - first]
    groups = []
    end = len(order)
    while end:
        groups.append(order[starts[end] : end])
        end = starts[end]
    return groups[::-1]


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` items spread evenly over all, or all if there are fewer."""
    total = len(items)
    return list(items) if count >= total else [items[i * total // count] for i in range(count)]


def batches_by_length(
    items: Sequence[Item], length_of: Callable[[Item], int], token_budget: int
) -> list[list[Item]]:
    """Group items as `group_by_length` groups their places."""
    groups = group_by_length([length_of(item) for item in items], token_budget)
    return [[items[place] for place in group] for group in groups]


def largest(groups: Iterable[list[Item]], length_of: Callable[[Item], int]) -> list[Item]:
    """Return the group of the most tokens, each item padded to its last; nothing if there is none.

    Args:
        groups: of items whose longest comes last, as `batches_by_length` makes them.
        length_of: tokens of an item.
    """
    return max(groups, key=lambda items: len(items) * length_of(items[-1]), default=[])
