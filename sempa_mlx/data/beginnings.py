"""What token rows begin with together: a pure function of the rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(slots=True)
class _Alike:
    """Neighbours in lexical order from `first` on that begin with the same `depth` tokens.

    `saved` is what the beginnings `chosen` among them save, each as (first, end, depth).
    """

    depth: int
    first: int
    saved: int = 0
    chosen: list[tuple[int, int, int]] = field(default_factory=list)

    def take(self, other: "_Alike") -> None:
        """Add what is chosen among some of these neighbours."""
        self.saved += other.saved
        self.chosen += other.chosen

    def close(self, end: int, price: int) -> None:
        """Decide between one beginning for all neighbours and those chosen among them."""
        saved = (end - self.first - 1) * self.depth - price
        if saved > self.saved:
            self.saved, self.chosen = saved, [(self.first, end, self.depth)]


def shared_beginnings(rows: Sequence[Sequence[int]], price: int) -> list[int]:
    """Choose how many leading tokens of each row are run once for all rows that have them.

    Args:
        rows: tokens; none is empty.
        price: what one more beginning costs, in tokens, beside its own.

    Returns:
        A number for each row, 0 for none, always less than its length: rows with the same number
        and the same tokens up to there share a beginning. No beginning begins another; of all such
        choices it is one that saves most tokens.
    """
    order = sorted(range(len(rows)), key=lambda index: tuple(rows[index][:-1]))
    alike = [_common(rows[left][:-1], rows[right][:-1]) for left, right in pairwise(order)]
    open_groups = [_Alike(0, 0)]
    for end, depth in enumerate([*alike, 0], 1):
        inner = _Alike(depth, end - 1)
        while open_groups[-1].depth > depth:
            closed = open_groups.pop()
            closed.take(inner)
            closed.close(end, price)
            inner = closed
        if open_groups[-1].depth == depth:
            open_groups[-1].take(inner)
        else:
            open_groups.append(_Alike(depth, inner.first, inner.saved, inner.chosen))
    lengths = [0] * len(rows)
    for first, end, depth in open_groups[0].chosen:
        for place in order[first:end]:
            lengths[place] = depth
    return lengths


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Count the leading tokens of two rows that are equal."""
    pairs = enumerate(zip(left, right, strict=False))
    shorter = min(len(left), len(right))
    return next((place for place, (one, other) in pairs if one != other), shorter)
