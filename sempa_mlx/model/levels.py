"""One level of a tree of tokens: rows of any lengths, run in groups with little padding."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from sempa_mlx.data.batching import cut_by_length
from sempa_mlx.model.forward import KeysValues, Past, pad_right, run_level


class Level(NamedTuple):
    """Rows that were run in groups of like length.

    `states` is (n, dim), all final states with the padding of each group; row i has its first at
    `starts[i]`. `layers` holds keys and values by layer, (rows, kv_heads, longest, dim), where row
    i is at `places[i]`.
    """

    states: mx.array
    starts: list[int]
    layers: list[KeysValues]
    places: list[int]


def run_by_length(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    past_of: Callable[[list[int]], Past | None],
    mask_rank: int,
    pass_tokens: int,
    *,
    keeps: bool = True,
) -> Level:
    """Run token rows in as many passes as padding makes worth it, each after its own past."""
    starts, places = [0] * len(rows), [0] * len(rows)
    states: list[mx.array] = []
    parts: list[list[KeysValues]] = []
    num_states = num_rows = 0
    for group in cut_by_length([len(row) for row in rows], pass_tokens):
        tokens = pad_right([rows[index] for index in group])
        hidden, layers = run_level(model, mx.array(tokens), past_of(group), mask_rank, keeps=keeps)
        states.append(hidden.reshape(-1, hidden.shape[-1]))
        parts.append([levels[-1] for levels in layers])
        for index in group:
            starts[index], places[index] = num_states, num_rows
            num_states += tokens.shape[1]
            num_rows += 1
    layers_of_all = [_joined(groups) for groups in zip(*parts, strict=True)]
    return Level(mx.concatenate(states), starts, layers_of_all, places)


def _joined(groups: Sequence[KeysValues]) -> KeysValues:
    """Join keys and values of groups of rows, padded to the longest."""
    longest = max(keys.shape[2] for keys, _ in groups)

    def padded(array: mx.array) -> mx.array:
        missing = longest - array.shape[2]
        return mx.pad(array, [(0, 0), (0, 0), (0, missing), (0, 0)]) if missing else array

    keys, values = zip(*groups, strict=True)
    return mx.concatenate([*map(padded, keys)]), mx.concatenate([*map(padded, values)])
