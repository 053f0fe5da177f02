"""Hidden states of any layers in one forward pass; what all rows begin with is run once."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx.data.batching import Passes, cut_by_length, fill_in_order
from sempa_mlx.data.templates import PROMPTEOL
from sempa_mlx.model.blocks import TappedModel, Taps
from sempa_mlx.model.forest import PASS_TOKENS, Branch, Forest, can_be_forest, run_forest
from sempa_mlx.model.forward import (
    GROUPED_MASK_RANK,
    PLAIN_MASK_RANK,
    Past,
    SharedPrefixUnsupportedError,
    common_prefix,
    final_hidden,
    pad_right,
    run_level,
    tokens_of_a_pass,
)
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.prompts import tokenize_texts

MIN_SHARED = 2  # fewer leading tokens are not worth a level of their own
PROBE = ("A short sentence", "One more sentence, somewhat longer than the first")
CANNOT_SHARE = (SharedPrefixUnsupportedError, ValueError, TypeError, AttributeError, IndexError)
Row = tuple[int, ...]


class Positions(NamedTuple):
    """Where rows stand in the arrays of a pass: `shared` leading tokens of each were run apart.

    `lengths` is (rows,) int32, the real tokens of each row after those.
    """

    shared: int
    lengths: mx.array

    def last(self, states: mx.array) -> mx.array:
        """Return the states of each row's last token, (rows, 1, dim)."""
        return mx.take_along_axis(states, (self.lengths - 1)[:, None, None], axis=1)


class Read(NamedTuple):
    """Hidden states by layer, (rows, length, dim), padded on the right, and where things stand."""

    states: dict[int, mx.array]
    positions: Positions


MakeTaps = Callable[[Positions], Taps]


class StateReader:
    """Reads hidden states of one model; shares a common prefix where that is exact."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Keep the model; whether it can share is found out when it is first asked to."""
        self._loaded = loaded
        self._can_share: bool | None = None
        self._can_be_forest: bool | None = None
        self._last_rank: int | None = None
        self._tried_last = False

    @property
    def depth(self) -> int:
        """The number of blocks, which is also the index of the final states."""
        return len(self._loaded.model.layers)

    def read(
        self,
        rows: Sequence[Row],
        layers: Collection[int],
        *,
        most_shared: int,
        make_taps: MakeTaps | None = None,
    ) -> Read:
        """Run token rows once and return the states of some layers.

        Args:
            rows: token ids; none is empty.
            layers: indices as in Hugging Face's `hidden_states`, 0 to `depth`.
            most_shared: how many leading tokens may at most be run apart, as neither their states
                nor changes to them are wanted.
            make_taps: makes the changes to this pass; they never reach tokens that are run apart.

        Raises:
            ModelError: the model's blocks do not allow it.
        """
        shared = min(common_prefix(rows), most_shared)
        if shared < MIN_SHARED or not self._shares_exactly():
            shared = 0
        try:
            return self._read(rows, layers, shared, make_taps)
        except SharedPrefixUnsupportedError:  # longer than the model's attention window
            return self._read(rows, layers, 0, make_taps)

    def _read(
        self, rows: Sequence[Row], layers: Collection[int], shared: int, make_taps: MakeTaps | None
    ) -> Read:
        positions = Positions(shared, mx.array([len(row) - shared for row in rows]))
        taps = Taps() if make_taps is None else make_taps(positions)
        model = self._loaded.model
        if make_taps is None and set(layers) == {self.depth}:
            return Read({self.depth: final_hidden(model, rows, shared)}, positions)
        return Read(tapped_states(model, rows, layers, taps, shared), positions)

    def read_ends(self, rows: Sequence[Row], *, most_shared: int) -> mx.array:
        """Return the final states of the rows' last tokens, (rows, dim); see `read`."""
        if self._is_forest():
            shared = min(common_prefix(rows), most_shared)
            with suppress(SharedPrefixUnsupportedError):  # longer than the model's attention window
                return forest_ends(self._loaded.model, rows, shared)
        found = self.read(rows, (self.depth,), most_shared=most_shared)
        return found.positions.last(found.states[self.depth])[:, 0]

    def passes(self, lengths: Sequence[int], token_budget: int, *, ends: bool = True) -> Passes:
        """Group rows, given by their lengths, for the passes that suit what is read of them.

        Args:
            lengths: tokens of each row.
            token_budget: upper bound of tokens in one pass, padding included.
            ends: whether `read_ends` will run them.

        Returns:
            Groups in which each index stands once, short rows first.
        """
        if ends and self._is_forest():
            groups = fill_in_order(lengths, min(token_budget, PASS_TOKENS))
            return Passes(groups, sum(lengths))
        groups = cut_by_length(lengths, tokens_of_a_pass(), token_budget)
        return Passes(groups, sum(len(group) * lengths[group[-1]] for group in groups))

    def _is_forest(self) -> bool:
        """Tell, once, whether `forest_ends` gives this model's own states."""
        if self._can_be_forest is None:
            self._can_be_forest = can_be_forest(self._loaded.dtype) and self._try_forest()
        return self._can_be_forest

    def _try_forest(self) -> bool:
        rows = self._probe()
        try:
            found = forest_ends(self._loaded.model, rows, common_prefix(rows))
            return self._is_equal(found, self._plain_ends(rows))
        except CANNOT_SHARE:
            return False

    def read_last(
        self, rows: Sequence[Row], layers: Collection[int], makers: Sequence[MakeTaps]
    ) -> list[dict[int, mx.array]] | None:
        """Read the states of the last tokens under each of several taps that change only those.

        All other tokens are run once. Taps see the last tokens alone, as rows of length 1.

        Returns:
            (rows, dim) float32 by layer for each of `makers`; None if the model cannot do this.

        Raises:
            ModelError: the model's blocks do not allow taps.
        """
        mask_rank = self._rank_for_last()
        if mask_rank is None:
            return None
        positions = Positions(max(map(len, rows)) - 1, mx.ones(len(rows), dtype=mx.int32))
        all_taps = [make_taps(positions) for make_taps in makers]
        model = self._loaded.model
        try:
            return last_states(model, rows, layers, all_taps, mask_rank)
        except SharedPrefixUnsupportedError:  # longer than the model's attention window
            return None

    def _rank_for_last(self) -> int | None:
        """Find, once, the rank of masks under which last tokens may be run apart, if any."""
        if not self._tried_last:
            self._tried_last = True
            ranks = (PLAIN_MASK_RANK, GROUPED_MASK_RANK)
            self._last_rank = next(filter(self._try_last, ranks), None)
        return self._last_rank

    def _try_last(self, mask_rank: int) -> bool:
        rows = self._probe()
        try:
            found = last_states(self._loaded.model, rows, (self.depth,), (Taps(),), mask_rank)
            return self._is_equal(found[0][self.depth], self._plain_ends(rows))
        except CANNOT_SHARE:
            return False

    def _plain_ends(self, rows: Sequence[Row]) -> mx.array:
        whole = final_hidden(self._loaded.model, rows)
        return Positions(0, mx.array([len(row) for row in rows])).last(whole)[:, 0]

    def _probe(self) -> tuple[Row, ...]:
        return tokenize_texts(PROBE, PROMPTEOL, self._loaded.tokenizer, max_tokens=512).rows

    def _is_equal(self, found: mx.array, expected: mx.array) -> bool:
        """Tell whether two arrays of states differ by no more than rounding."""
        left, right = (np.array(each.astype(mx.float32)) for each in (found, expected))
        bound = 1e-4 if self._loaded.dtype == mx.float32 else 5e-2
        with np.errstate(invalid="ignore"):  # a broken model's are infinite, and equal nothing
            return bool(np.abs(left - right).max() <= bound * np.abs(right).max())

    def _shares_exactly(self) -> bool:
        """Tell, once, whether running the common prefix apart gives this model's own states."""
        if self._can_share is None:
            self._can_share = self._try_sharing()
        return self._can_share

    def _try_sharing(self) -> bool:
        model, rows = self._loaded.model, self._probe()
        shared = common_prefix(rows)
        plain = final_hidden(model, rows)
        try:
            apart = final_hidden(model, rows, shared)
            return all(
                self._is_equal(rest[: len(row) - shared], whole[shared : len(row)])
                for row, whole, rest in zip(rows, plain, apart, strict=True)
            )
        except CANNOT_SHARE:
            return False


def forest_ends(model: nn.Module, rows: Sequence[Row], shared: int) -> mx.array:
    """Return final states of the last tokens, (rows, dim), in one pass without padding.

    The `shared` leading tokens, equal in all rows, are run once. See `run_forest` for which models.

    Raises:
        SharedPrefixUnsupportedError: the rows are longer than the model's attention window.
    """
    forest = Forest([Branch(rows[0][:shared]), *(Branch(row[shared:], 0) for row in rows)])
    starts = forest.starts[1:]
    ends = [start + len(row) - shared - 1 for start, row in zip(starts, rows, strict=True)]
    return run_forest(model, forest)[mx.array(ends)]


def tapped_states(
    model: nn.Module, rows: Sequence[Row], layers: Collection[int], taps: Taps, shared: int = 0
) -> dict[int, mx.array]:
    """Return hidden states of some layers after the first `shared` tokens, under taps.

    The `shared` leading tokens, equal in all rows, are run once and without the taps.

    Raises:
        ModelError: the model's blocks do not allow it.
        SharedPrefixUnsupportedError: `shared` > 0 and the model's layers do not fit.
    """
    tapped = TappedModel(model, layers, taps)
    rest = mx.array(pad_right([row[shared:] for row in rows]))
    if shared == 0:
        return tapped.read(lambda twin: twin.model(rest))
    _, kept = run_level(model, mx.array([list(rows[0][:shared])]), None, PLAIN_MASK_RANK)
    past = Past(kept, visible=None, positions=shared)
    return tapped.read(lambda twin: run_level(twin, rest, past, PLAIN_MASK_RANK, keeps=False)[0])


def last_states(
    model: nn.Module,
    rows: Sequence[Row],
    layers: Collection[int],
    all_taps: Sequence[Taps],
    mask_rank: int,
) -> list[dict[int, mx.array]]:
    """Return states of the last tokens under each of several taps, (rows, dim) float32 by layer.

    All tokens but the last are run once and without taps.

    Raises:
        ModelError: the model's blocks do not allow taps.
        SharedPrefixUnsupportedError: the model's layers do not fit.
    """
    lengths = mx.array([len(row) - 1 for row in rows])
    before = mx.array(pad_right([row[:-1] for row in rows]))
    _, kept = run_level(model, before, None, mask_rank)
    visible = mx.arange(before.shape[1])[None, :] < lengths[:, None]
    past = Past(kept, visible=visible, positions=lengths)
    ends = mx.array([[row[-1]] for row in rows])
    found = []
    for taps in all_taps:
        states = TappedModel(model, layers, taps).read(
            lambda twin: run_level(twin, ends, past, mask_rank, keeps=False)[0]
        )
        found.append({layer: each[:, 0].astype(mx.float32) for layer, each in states.items()})
    return found
