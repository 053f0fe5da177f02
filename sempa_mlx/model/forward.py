"""Hidden states and completion log-probabilities, each shared token computed once.

Scoring a preference row is a walk down a tree: (1) the leading tokens that all prompts share, one
row; (2) the rest of each prompt; (3) the completions, each after its own prompt. Keys and values go
down the tree through `BranchCache`, which mlx-lm's models take for one of their own caches, so no
model code is copied, and gradients flow back up through it. The output head runs only on the
hidden states that predict a completion token. `score_plain` does the same by whole sequences, for
models whose layers do not fit this scheme, and as the oracle of the tests.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from sempa_mlx import runtime
from sempa_mlx.model.head import target_logps, text_model

GPU_LENGTH_STEP = 16
PLAIN_MASK_RANK = 4  # (rows, heads, queries, keys): what fused attention takes
GROUPED_MASK_RANK = 5  # one axis more, for models that split the heads of a group (Gemma 2)


class TokenRow(NamedTuple):
    """A prompt and its K candidate completions, as token ids; every part has at least one token."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]


KeysValues = tuple[mx.array, mx.array]  # of one layer and level, each (rows, kv_heads, length, dim)


class SharedPrefixUnsupportedError(Exception):
    """The model's layers cannot take keys and values from an earlier level."""


@dataclass(slots=True)
class Past:
    """Keys and values of all layers for everything before a level.

    `layers[i]` holds those of layer i, one pair an earlier level, each with the rows of its level.
    `visible` is (rows, length) bool, False on padding, or None when nothing is padded; the length
    is that of all pairs together. `positions` is how many real tokens came before: an int, or
    (rows,) int32.
    """

    layers: list[tuple[KeysValues, ...]]
    visible: mx.array | None
    positions: int | mx.array


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
            mx.concatenate([*(_spread(old, self._rows) for old in earlier_keys), keys], axis=2),
            mx.concatenate([*(_spread(old, self._rows) for old in earlier_values), values], axis=2),
        )

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


def _spread(array: mx.array, rows: int) -> mx.array:
    """Repeat each row so that `rows` rows result; neighbours share a parent."""
    if array.shape[0] == rows:
        return array
    if array.shape[0] == 1:
        return mx.broadcast_to(array, (rows, *array.shape[1:]))
    return mx.repeat(array, rows // array.shape[0], axis=0)


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


class TargetStates(NamedTuple):
    """The final states that predict completion tokens, for rows of K candidates.

    `hidden` is (n, dim), one state a scored token; `targets` are the n token ids; `owners` says
    whose they are, as row * K + candidate; `is_tail` marks tokens beyond the length of the row's
    shortest completion; `shape` is (rows, K).
    """

    hidden: mx.array
    targets: mx.array
    owners: mx.array
    is_tail: mx.array
    shape: tuple[int, int]

    def per_completion(self, values: mx.array) -> mx.array:
        """Sum (n,) values of tokens into their completions: (rows, K) float32."""
        total = mx.zeros(self.shape[0] * self.shape[1]).at[self.owners].add(values)
        return total.reshape(self.shape)


def plain_states(model: nn.Module, rows: Sequence[TokenRow]) -> TargetStates:
    """Find the states that predict completion tokens, by one full sequence a completion."""
    flat = [(row.prompt, completion) for row in rows for completion in row.completions]
    hidden = final_hidden(model, [prompt + completion for prompt, completion in flat])
    length = hidden.shape[1]
    picks: list[int] = []
    for index, (prompt, completion) in enumerate(flat):
        start = index * length + len(prompt) - 1  # the last prompt token predicts the first target
        picks += range(start, start + len(completion))
    return _target_states(hidden.reshape(-1, hidden.shape[-1]), picks, rows)


def shared_states(
    model: nn.Module, rows: Sequence[TokenRow], shared: int, mask_rank: int = PLAIN_MASK_RANK
) -> TargetStates:
    """Find the states that predict completion tokens, running shared tokens once.

    Args:
        model: any mlx-lm model whose layers use plain key/value caches.
        rows: preference rows with the same number of candidates K.
        shared: how many leading prompt tokens are equal in all rows (0 is allowed); every prompt
            must be longer.
        mask_rank: axes of a per-row attention mask, found by `choose_scoring`.

    Raises:
        SharedPrefixUnsupportedError: the model's layers do not fit.
    """
    past = None
    if shared:
        _, layers = run_level(model, mx.array([list(rows[0].prompt[:shared])]), None, mask_rank)
        past = Past(layers, visible=None, positions=shared)
    prompts = [row.prompt[shared:] for row in rows]
    prompt_hidden, layers = run_level(model, mx.array(pad_right(prompts)), past, mask_rank)
    past = _after_prompts(layers, [len(row.prompt) for row in rows], len(rows[0].completions))
    # The last token of a completion predicts nothing that is scored, so it is never run.
    inputs = [completion[:-1] or (0,) for row in rows for completion in row.completions]
    branch_hidden, _ = run_level(model, mx.array(pad_right(inputs)), past, mask_rank, keeps=False)
    return _branch_targets(prompt_hidden, branch_hidden, rows, shared)


def _after_prompts(
    layers: list[tuple[KeysValues, ...]], lengths: list[int], num_candidates: int
) -> Past:
    """Describe prompts of the given full lengths as the past of their completions, K a prompt."""
    repeated = mx.repeat(mx.array(lengths), num_candidates)
    visible = mx.arange(_length(layers[0]))[None, :] < repeated[:, None]
    return Past(layers, visible=visible, positions=repeated)


def _branch_targets(
    prompt_hidden: mx.array, branch_hidden: mx.array, rows: Sequence[TokenRow], shared: int
) -> TargetStates:
    """Gather the states that predict completion tokens from prompts and completions."""
    dim = prompt_hidden.shape[-1]
    prompt_length, branch_length = prompt_hidden.shape[1], branch_hidden.shape[1]
    start = prompt_hidden.shape[0] * prompt_length
    picks: list[int] = []
    for index, row in enumerate(rows):
        last_of_prompt = index * prompt_length + len(row.prompt) - shared - 1
        for completion in row.completions:
            picks += [last_of_prompt, *range(start, start + len(completion) - 1)]
            start += branch_length
    states = mx.concatenate([prompt_hidden.reshape(-1, dim), branch_hidden.reshape(-1, dim)])
    return _target_states(states, picks, rows)


def _target_states(
    states: mx.array, picks: Sequence[int], rows: Sequence[TokenRow]
) -> TargetStates:
    """Name what each picked state predicts: completion after completion, token after token."""
    targets: list[int] = []
    owners: list[int] = []
    is_tail: list[bool] = []
    for row in rows:
        shortest = min(map(len, row.completions))
        for completion in row.completions:
            owners += [owners[-1] + 1 if owners else 0] * len(completion)
            targets += completion
            is_tail += [place >= shortest for place in range(len(completion))]
    shape = (len(rows), len(rows[0].completions))
    return TargetStates(
        states[mx.array(list(picks))], mx.array(targets), mx.array(owners), mx.array(is_tail), shape
    )


def score_plain(model: nn.Module, rows: Sequence[TokenRow]) -> mx.array:
    """Return completion log-probabilities, (rows, K) float32, by one full sequence a completion."""
    states = plain_states(model, rows)
    return states.per_completion(target_logps(model, states.hidden, states.targets))


def score_shared(
    model: nn.Module, rows: Sequence[TokenRow], shared: int, mask_rank: int = PLAIN_MASK_RANK
) -> mx.array:
    """Return completion log-probabilities, (rows, K) float32; see `shared_states`."""
    states = shared_states(model, rows, shared, mask_rank)
    return states.per_completion(target_logps(model, states.hidden, states.targets))
