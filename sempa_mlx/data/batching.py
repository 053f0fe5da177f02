"""Order and grouping: pure functions of lengths, seed and epoch. They know numbers, not texts."""

from collections.abc import Sequence

import numpy as np


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """Return a permutation of range(count) that depends on nothing but (seed, epoch)."""
    permutation = np.random.default_rng([seed, epoch]).permutation(count)
    return [int(index) for index in permutation]


def step_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Cut an epoch into batches; each row once, the last batch may be smaller."""
    order = epoch_order(count, seed, epoch)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


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
