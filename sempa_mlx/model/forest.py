"""Token rows that begin alike, each token computed once and none padded: the layout for a CPU.

Rows are branches: each follows another one, or none. All their tokens go through the model as a
batch of rows of one token, so that everything but attention is a few large products, whatever the
lengths. Attention takes a branch together with all that it follows (`cpu_attention`); in groups of
like length, as only there padding costs anything, and little.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx import runtime
from sempa_mlx.data.batching import cut_by_length
from sempa_mlx.model.forward import KeysValues, SharedPrefixUnsupportedError
from sempa_mlx.model.head import text_model

PASS_TOKENS = 2048  # of a pass: the weights are copied once for all, and states stay in the cache
GROUP_KEYS = 64  # padded keys that cost as much as one more group of attention


class Branch(NamedTuple):
    """Tokens, none or more, and the index of the earlier branch that they follow, if any."""

    tokens: Sequence[int]
    parent: int | None = None


class Group(NamedTuple):
    """Branches whose attention is computed together, by the places of their tokens in the batch.

    `queries` is (branches, most own tokens) int32, `keys` (branches, most keys) int32: those of all
    that a branch follows, then its own. Pads are place 0. `mask`, (branches, 1, queries, keys)
    bool, is True where a query sees a key.
    """

    queries: mx.array
    keys: mx.array
    mask: mx.array


class Forest:
    """Where the tokens of branches stand in one batch.

    `starts[i]` is the place of the first token of branch i, `positions` are those of all tokens in
    their rows, (tokens,) int32, of which the longest has `longest`. Attention is computed by
    `groups`; `order`, (tokens,) int32, says where a token's result stands among the results of all
    groups, pads included.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        """Lay out the branches one after the other; a parent comes before its children."""
        sizes = [len(branch.tokens) for branch in branches]
        self.starts = np.cumsum([0, *sizes[:-1]]).tolist()
        self.tokens = mx.array([token for branch in branches for token in branch.tokens])
        spans: list[list[int]] = []  # places of all keys of a branch
        for start, size, branch in zip(self.starts, sizes, branches, strict=True):
            before = [] if branch.parent is None else spans[branch.parent]
            spans.append([*before, *range(start, start + size)])
        depths = [len(span) - size for span, size in zip(spans, sizes, strict=True)]
        self.positions = mx.array(
            [depth + i for depth, size in zip(depths, sizes, strict=True) for i in range(size)]
        )
        self.groups: list[Group] = []
        order = np.zeros(self.tokens.size, dtype=np.int32)
        self.longest = max(map(len, spans))
        done = 0
        filled = [index for index, size in enumerate(sizes) if size]
        for members in cut_by_length([len(spans[index]) for index in filled], GROUP_KEYS):
            group = [filled[member] for member in members]
            width = max(sizes[index] for index in group)
            for place, index in enumerate(group):
                first = done + place * width
                own = slice(self.starts[index], self.starts[index] + sizes[index])
                order[own] = range(first, first + sizes[index])
            done += width * len(group)
            self.groups.append(_group([spans[i] for i in group], [depths[i] for i in group], width))
        self.order = mx.array(order)


def _group(spans: Sequence[Sequence[int]], depths: Sequence[int], width: int) -> Group:
    longest = max(map(len, spans))
    queries = np.zeros((len(spans), width), dtype=np.int32)
    keys = np.zeros((len(spans), longest), dtype=np.int32)
    for row, (span, depth) in enumerate(zip(spans, depths, strict=True)):
        keys[row, : len(span)] = span
        queries[row, : len(span) - depth] = span[depth:]
    last = np.array(depths)[:, None] + np.arange(width)[None, :]  # the last key a query sees
    mask = np.arange(longest)[None, None, None, :] <= last[:, None, :, None]
    return Group(mx.array(queries), mx.array(keys), mx.array(mask))


class ForestCache:
    """What a model's layers take for a key/value cache while a forest runs through them."""

    def __init__(self, forest: Forest) -> None:
        """Serve all layers alike: nothing is kept from one to the next."""
        self.forest = forest
        self.offset = forest.positions

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysValues:
        """Return the keys and values of all tokens as they are, (tokens, kv_heads, 1, dim)."""
        return keys, values

    def make_mask(
        self, _length: int, return_array: bool = False, window_size: int | None = None
    ) -> None:
        """Return no mask: groups have their own.

        Raises:
            SharedPrefixUnsupportedError: the layers need one.
        """
        too_long = window_size is not None and self.forest.longest > window_size
        if return_array or too_long:
            raise SharedPrefixUnsupportedError("the attention of these layers needs a mask")


def can_be_forest(dtype: mx.Dtype) -> bool:
    """Tell whether it is worth trying a forest on a model: on a CPU in float32."""
    return not runtime.is_gpu() and dtype == mx.float32


def run_forest(model: nn.Module, forest: Forest) -> mx.array:
    """Return the final states of all tokens, (tokens, dim), in the order of the branches.

    Only for models whose attention function is `cpu_attention.attention`; others compute nonsense,
    so try it on a model first.
    """
    caches = [ForestCache(forest)] * len(model.layers)
    hidden: mx.array = text_model(model).model(forest.tokens[:, None], cache=caches)
    return hidden[:, 0]
