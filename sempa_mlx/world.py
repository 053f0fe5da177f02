"""The processes that train together under `mlx.launch`; one process is a world of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

SEEDS = 1 << 64
SEEDS_A_PROCESS = 1 << 10
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among those that share the work; sums go over all of them."""

    rank: int = 0
    size: int = 1
    group: Any = field(default=None, repr=False)

    @classmethod
    def join(cls) -> "World":
        """Find the other processes that `mlx.launch` started, if any."""
        group = mx.distributed.init()
        return cls(group.rank(), group.size(), group)

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's part of the items: every `size`-th one."""
        return list(items[self.rank :: self.size])

    def seed(self, common: int, place: int) -> int:
        """Return a seed of this process alone for the `place`-th thing it draws under a seed.

        It fits the 64 bits that mlx takes, however large the common one is.
        """
        return (common + self.rank * SEEDS_A_PROCESS + place) % SEEDS

    def total(self, tree: Any) -> Any:  # noqa: ANN401 - any tree of arrays
        """Add arrays over all processes; every process must call this in the same order."""
        if self.size == 1:
            return tree
        return tree_map(self._sum, tree)

    def total_of(self, values: Sequence[float]) -> list[float]:
        """Add numbers over all processes."""
        if self.size == 1 or not values:
            return list(values)
        summed = np.array(self._sum(mx.array(list(values), dtype=mx.float32)))
        return [float(value) for value in summed]

    def any(self, here: bool) -> bool:
        """Tell whether any process says yes."""
        return self.total_of([float(here)])[0] > 0

    def joined(self, parts: np.ndarray) -> np.ndarray:
        """Add up float32 arrays of which each process filled its own rows, the rest being 0."""
        return parts if self.size == 1 else np.array(self._sum(mx.array(parts)))

    def _sum(self, array: mx.array) -> mx.array:
        # The ring speaks over sockets: its sums run on the CPU's stream.
        return mx.distributed.all_sum(array, group=self.group, stream=mx.cpu)
