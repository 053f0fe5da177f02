"""Rows whose leading tokens have been run already, each beginning once for all rows that share it.

Three levels, as in scoring completions: the tokens that all rows share, the beginnings that some
share, and the rest of each row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from sempa_mlx.data.batching import cut_by_length
from sempa_mlx.data.beginnings import shared_beginnings
from sempa_mlx.model.forward import (
    KeysValues,
    Past,
    common_prefix,
    pad_right,
    run_level,
    tokens_of_a_pass,
)
from sempa_mlx.model.levels import run_by_length

PRICE = 3  # tokens that one more beginning has to save, for it is fetched for every row
LEAST_GAIN = 0.02  # of the work, below which beginnings are not worth their memory


@dataclass(frozen=True, slots=True)
class Begun:
    """What was run of some rows: `shared` tokens of all, then beginnings that some share.

    `trunk` and `layers` hold keys and values by layer. Row i follows the beginning in place
    `parents[i]` for `lengths[i]` tokens, 0 if it has none.
    """

    trunk: list[tuple[KeysValues, ...]]
    layers: list[KeysValues]
    shared: int
    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    mask_rank: int

    def tokens(self) -> list[int]:
        """Return how many tokens of each row have been run."""
        return [self.shared + length for length in self.lengths]

    def of(self, indices: Sequence[int]) -> "Begun":
        """Return the same for some of the rows."""
        lengths = tuple(self.lengths[index] for index in indices)
        return replace(self, lengths=lengths, parents=tuple(self.parents[i] for i in indices))

    def rest(self, rows: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """Return what is left of the rows."""
        return [row[done:] for row, done in zip(rows, self.tokens(), strict=True)]

    def run(self, model: nn.Module, rest: Sequence[Sequence[int]]) -> mx.array:
        """Return the final states of what is left of the rows, (rows, longest, dim)."""
        tokens = mx.array(pad_right(rest))
        return run_level(model, tokens, self._past(), self.mask_rank, keeps=False)[0]

    def _past(self) -> Past:
        longest = max(self.lengths)
        if longest == 0:
            return Past(self.trunk, visible=None, positions=self.shared)
        layers = [
            (*above, (keys[:, :, :longest], values[:, :, :longest]))
            for above, (keys, values) in zip(self.trunk, self.layers, strict=True)
        ]
        positions = mx.array(self.lengths) + self.shared
        visible = mx.arange(self.shared + longest)[None, :] < positions[:, None]
        return Past(layers, visible, positions, mx.array(self.parents))


def begin(model: nn.Module, rows: Sequence[Sequence[int]], mask_rank: int) -> Begun | None:
    """Run what rows begin with, if that is less work than running all of them whole.

    Args:
        model: whose layers keep keys and values.
        rows: tokens; none is empty.
        mask_rank: axes of a per-row attention mask of this model.

    Raises:
        SharedPrefixUnsupportedError: the model's layers do not fit.
    """
    shared = common_prefix(rows)
    own = [row[shared:] for row in rows]
    lengths = shared_beginnings(own, PRICE)
    places: dict[tuple[int, ...], int] = {}
    for row, length in zip(own, lengths, strict=True):
        if length:
            places.setdefault(tuple(row[:length]), len(places))
    rest = [len(row) - length for row, length in zip(own, lengths, strict=True)]
    work = _work(rest) + _work([len(beginning) for beginning in places])
    if shared == 0 or work > (1.0 - LEAST_GAIN) * _work([len(row) for row in own]):
        return None
    _, trunk = run_level(model, mx.array([list(rows[0][:shared])]), None, mask_rank)
    past = Past(trunk, visible=None, positions=shared)
    level = run_by_length(model, list(places), lambda _: past, mask_rank, tokens_of_a_pass())
    mx.eval(trunk, level.layers)
    parents = (
        level.places[places[tuple(row[:length])]] if length else 0
        for row, length in zip(own, lengths, strict=True)
    )
    return Begun(trunk, level.layers, shared, tuple(lengths), tuple(parents), mask_rank)


def _work(lengths: Sequence[int]) -> int:
    """Return what running rows takes in as many passes as is best, in tokens."""
    groups = cut_by_length(lengths, tokens_of_a_pass())
    return sum(len(group) * lengths[group[-1]] + tokens_of_a_pass() for group in groups)
