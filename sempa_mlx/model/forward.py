"""Hidden states of token rows, each shared token computed once.

Rows that begin alike are a tree: every level is run after the keys and values of the levels above.
Those go down the tree through `BranchCache`, which mlx-lm's models take for one of their own
caches, so no model code is copied, and gradients flow back up through it.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx import runtime
from sempa_mlx.model.head import text_model

GPU_LENGTH_STEP = 16
CPU_PASS_TOKENS, GPU_PASS_TOKENS = 32, 1024
PLAIN_MASK_RANK = 4  # (rows, heads, queries, keys): what fused attention takes
GROUPED_MASK_RANK = 5  # one axis more, for models that split the heads of a group (Gemma 2)


KeysValues = tuple[mx.array, mx.array]  # of one layer and level, each (rows, kv_heads, length, dim)


class SharedPrefixUnsupportedError(Exception):
    """The model's layers cannot take keys and values from an earlier level."""


@dataclass(slots=True)
class Past:
    """Keys and values of all layers for everything before a level.

    `layers[i]` holds those of layer i, one pair an earlier level; a level of one row is the past of
    all rows, of another each row follows the row that `parents`, (rows,) int32, names. `visible` is
    (rows, length) bool, False on padding, or None when nothing is padded; the length is that of all
    pairs together. `positions` is how many real tokens came before: an int, or (rows,) int32.
    """

    layers: list[tuple[KeysValues, ...]]
    visible: mx.array | None
    positions: int | mx.array
    parents: mx.array | None = None


class BranchCache:
    """What one layer sees: the past it attends to, and where its own keys and values are kept.

    `past` holds the keys and values of earlier levels, `new` those of this one once the layer ran.
    `keeps` says whether later levels need them.
    """

    def __init__(
        self, past: Past | None, layer: int, rows: int, mask_rank: int, *, keeps: bool = True
    ) -> None:
        """Look at layer `layer` of `past`, spread over `rows` rows."""
        self.past: tuple[KeysValues, ...] = () if past is None else past.layers[layer]
        self.new: KeysValues | None = None
        self.offset: int | mx.array = 0 if past is None else past.positions
        self.keeps = keeps
        self._visible = None if past is None else past.visible
        self._parents = None if past is None else past.parents
        self._rows = rows
        self._mask_rank = mask_rank

    def after(self, past: tuple[KeysValues, ...]) -> Self:
        """Return an unused cache like this one, with `past` in place of its own past."""
        twin = copy(self)
        twin.past, twin.new = past, None
        return twin

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysValues:
        """Return past and new keys and values, joined along the length axis."""
        self.new = (keys, values)
        if not self.past:
            return self.new
        earlier_keys, earlier_values = zip(*self.past, strict=True)
        return (
            mx.concatenate([*map(self._spread, earlier_keys), keys], axis=2),
            mx.concatenate([*map(self._spread, earlier_values), values], axis=2),
        )

    def _spread(self, array: mx.array) -> mx.array:
        """Give every row the keys, or values, of the row that it follows."""
        if array.shape[0] == 1 or self._parents is None:
            return mx.broadcast_to(array, (self._rows, *array.shape[1:]))
        return mx.take(array, self._parents, axis=0)

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Return what `length` new queries may see: all real past keys, and new ones up to them."""
        past_length = _length(self.past)
        if window_size is not None and past_length + length > window_size:
            raise SharedPrefixUnsupportedError("the rows are longer than the attention window")
        if past_length == 0 and not return_array:
            return "causal" if length > 1 else None
        causal = mx.tril(mx.ones((length, past_length + length), dtype=mx.bool_), k=past_length)
        if self._visible is None:
            return causal
        new = mx.ones((self._rows, length), dtype=mx.bool_)
        real = mx.concatenate([self._visible, new], axis=1)
        middle = [1] * (self._mask_rank - 2)
        return causal & real.reshape(self._rows, *middle, past_length + length)


def _length(levels: tuple[KeysValues, ...]) -> int:
    """Count the positions of all levels together, padding included."""
    return sum(keys.shape[2] for keys, _ in levels)


def run_level(
    model: nn.Module, tokens: mx.array, past: Past | None, mask_rank: int, *, keeps: bool = True
) -> tuple[mx.array, list[tuple[KeysValues, ...]]]:
    """Run (rows, length) tokens after `past`; return final states, and if it `keeps`, `layers`."""
    caches = [
        BranchCache(past, layer, tokens.shape[0], mask_rank, keeps=keeps)
        for layer in range(len(model.layers))
    ]
    hidden = text_model(model).model(tokens, cache=caches)
    if not keeps:
        return hidden, []
    if any(cache.new is None for cache in caches):
        raise SharedPrefixUnsupportedError("some layers keep no keys and values")
    return hidden, [(*cache.past, cache.new) for cache in caches if cache.new is not None]


def tokens_of_a_pass() -> int:
    """Return how many padded tokens cost as much as one more pass through the blocks."""
    return GPU_PASS_TOKENS if runtime.is_gpu() else CPU_PASS_TOKENS


def pad_right(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Pad token rows with 0 to (rows, longest) int32; pads sit after all real tokens.

    On a GPU the length is rounded up, so that few shapes occur: mlx keeps freed buffers by size.
    """
    step = GPU_LENGTH_STEP if runtime.is_gpu() else 1
    longest = -(-max(map(len, rows)) // step) * step
    padded = np.zeros((len(rows), longest), dtype=np.int32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Count the leading tokens that all rows share, leaving each row at least one of its own."""
    ordered = sorted(tuple(row) for row in rows)
    shortest, longest = ordered[0], ordered[-1]  # in lexical order: all others lie between
    limit = min(map(len, rows)) - 1
    for index in range(limit):
        if shortest[index] != longest[index]:
            return index
    return limit


def final_hidden(model: nn.Module, rows: Sequence[Sequence[int]], shared: int = 0) -> mx.array:
    """Return final-norm states of the tokens after the first `shared`, (rows, longest, dim).

    Rows are padded on the right; states on pads mean nothing. The `shared` leading tokens, equal in
    all rows, are run once.

    Raises:
        SharedPrefixUnsupportedError: `shared` > 0 and the model's layers do not fit.
    """
    if shared == 0:
        whole: mx.array = text_model(model).model(mx.array(pad_right(rows)))
        return whole
    _, layers = run_level(model, mx.array([list(rows[0][:shared])]), None, PLAIN_MASK_RANK)
    past = Past(layers, visible=None, positions=shared)
    rest = mx.array(pad_right([row[shared:] for row in rows]))
    return run_level(model, rest, past, PLAIN_MASK_RANK, keeps=False)[0]
