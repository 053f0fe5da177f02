"""Hidden states and completion log-probabilities, each shared token computed once.

Scoring a preference row is a walk down a tree: (1) the leading tokens that all prompts share, one
row; (2) the rest of each prompt; (3) the completions, each after its own prompt. Keys and values go
down the tree through `BranchCache`, which mlx-lm's models take for one of their own caches, so no
model code is copied, and gradients flow back up through it. The output head runs only on the
hidden states that predict a completion token. `score_plain` does the same by whole sequences, for
models whose layers do not fit this scheme, and as the oracle of the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

PLAIN_MASK_RANK = 4  # (rows, heads, queries, keys): what fused attention takes
GROUPED_MASK_RANK = 5  # one axis more, for models that split the heads of a group (Gemma 2)


class TokenRow(NamedTuple):
    """A prompt and its K candidate completions, as token ids; every part has at least one token."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]


class SharedPrefixUnsupportedError(Exception):
    """The model's layers cannot take keys and values from an earlier level."""


@dataclass(slots=True)
class Past:
    """Keys and values of all layers for everything before a level.

    `layers[i]` is (keys, values), each (rows, kv_heads, length, head_dim). `visible` is (rows,
    length) bool, False on padding, or None when nothing is padded. `positions` is how many real
    tokens came before: an int, or (rows,) int32.
    """

    layers: list[tuple[mx.array, mx.array]]
    visible: mx.array | None
    positions: int | mx.array


class BranchCache:
    """What one layer sees: the past it attends to, and where its own keys and values are kept."""

    def __init__(self, past: Past | None, layer: int, rows: int, mask_rank: int) -> None:
        """Look at layer `layer` of `past`, spread over `rows` rows."""
        self._past = None if past is None else past.layers[layer]
        self._visible = None if past is None else past.visible
        self.offset: int | mx.array = 0 if past is None else past.positions
        self._rows = rows
        self._mask_rank = mask_rank
        self.fetched: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Return past and new keys and values, joined along the length axis."""
        if self._past is not None:
            keys, values = (
                mx.concatenate([_spread(old, self._rows), new], axis=2)
                for old, new in zip(self._past, (keys, values), strict=True)
            )
        self.fetched = (keys, values)
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Return what `length` new queries may see: all real past keys, and new ones up to them."""
        past_length = 0 if self._past is None else self._past[0].shape[2]
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


def _spread(array: mx.array, rows: int) -> mx.array:
    """Repeat each row so that `rows` rows result; neighbours share a parent."""
    if array.shape[0] == rows:
        return array
    if array.shape[0] == 1:
        return mx.broadcast_to(array, (rows, *array.shape[1:]))
    return mx.repeat(array, rows // array.shape[0], axis=0)


def text_model(model: nn.Module) -> nn.Module:
    """Return the language model inside a multimodal wrapper, or the model itself."""
    return model.language_model if "language_model" in model else model


def _run_level(
    model: nn.Module, tokens: mx.array, past: Past | None, mask_rank: int
) -> tuple[mx.array, list[tuple[mx.array, mx.array]]]:
    """Run (rows, length) tokens after `past`; return final states and all keys and values."""
    caches = [
        BranchCache(past, layer, tokens.shape[0], mask_rank) for layer in range(len(model.layers))
    ]
    hidden = text_model(model).model(tokens, cache=caches)
    fetched = [cache.fetched for cache in caches]
    if any(pair is None for pair in fetched):
        raise SharedPrefixUnsupportedError("some layers keep no keys and values")
    return hidden, [pair for pair in fetched if pair is not None]


def pad_right(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Pad token rows with 0 to (rows, longest) int32; pads sit after all real tokens."""
    padded = np.zeros((len(rows), max(map(len, rows))), dtype=np.int32)
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
    _, layers = _run_level(model, mx.array([list(rows[0][:shared])]), None, PLAIN_MASK_RANK)
    past = Past(layers, visible=None, positions=shared)
    rest = mx.array(pad_right([row[shared:] for row in rows]))
    return _run_level(model, rest, past, PLAIN_MASK_RANK)[0]


class _Backbone:
    """Stands in for a backbone that has already run."""

    def __init__(self, backbone: nn.Module, hidden: mx.array) -> None:
        self._backbone, self._hidden = backbone, hidden

    def __call__(self, *_args: Any, **_kwargs: Any) -> mx.array:  # noqa: ANN401 - any model's call
        return self._hidden

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the model has
        return getattr(self._backbone, name)


class _WithBackbone:
    """Stands in for a model, so that its own head code runs on given hidden states."""

    def __init__(self, model: nn.Module, hidden: mx.array) -> None:
        self._model = model
        self.model = _Backbone(model.model, hidden)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the model has
        return getattr(self._model, name)


def head_logits(model: nn.Module, hidden: mx.array) -> mx.array:
    """Run the model's own output head on (n, dim) hidden states; returns (n, vocab) float32.

    The model class's `__call__` is used with a stand-in for its backbone, so tied embeddings, soft
    caps and logit scales are the model's own.
    """
    inner = text_model(model)
    stand_in = _WithBackbone(inner, hidden[None])
    logits: mx.array = type(inner).__call__(
        stand_in, mx.zeros((1, hidden.shape[0]), dtype=mx.int32)
    )
    return logits[0].astype(mx.float32)


def target_logps(model: nn.Module, hidden: mx.array, targets: mx.array) -> mx.array:
    """Return log p(target) for (n, dim) hidden states and (n,) targets: (n,) float32."""
    logits = head_logits(model, hidden)
    picked = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return picked - mx.logsumexp(logits, axis=-1)


def _sum_by(values: mx.array, owners: Sequence[int], shape: tuple[int, int]) -> mx.array:
    """Sum per-token values into their completion, in float32."""
    return mx.zeros(shape[0] * shape[1]).at[mx.array(list(owners))].add(values).reshape(shape)


def score_plain(model: nn.Module, rows: Sequence[TokenRow]) -> mx.array:
    """Return completion log-probabilities, (rows, K) float32, by one full sequence a completion."""
    num_candidates = len(rows[0].completions)
    flat = [(row.prompt, completion) for row in rows for completion in row.completions]
    hidden = final_hidden(model, [prompt + completion for prompt, completion in flat])
    length = hidden.shape[1]
    picks: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for index, (prompt, completion) in enumerate(flat):
        start = index * length + len(prompt) - 1  # the last prompt token predicts the first target
        picks += range(start, start + len(completion))
        targets += completion
        owners += [index] * len(completion)
    chosen = hidden.reshape(-1, hidden.shape[-1])[mx.array(picks)]
    logps = target_logps(model, chosen, mx.array(targets))
    return _sum_by(logps, owners, (len(rows), num_candidates))


def score_shared(
    model: nn.Module, rows: Sequence[TokenRow], shared: int, mask_rank: int = PLAIN_MASK_RANK
) -> mx.array:
    """Return completion log-probabilities, (rows, K) float32, running shared tokens once.

    Args:
        model: any mlx-lm model whose layers use plain key/value caches.
        rows: preference rows with the same number of candidates K.
        shared: how many leading prompt tokens are equal in all rows (0 is allowed); every prompt
            must be longer.
        mask_rank: axes of a per-row attention mask, found by `choose_scoring`.

    Raises:
        SharedPrefixUnsupportedError: the model's layers do not fit.
    """
    num_rows, num_candidates = len(rows), len(rows[0].completions)
    past = None
    if shared:
        _, layers = _run_level(model, mx.array([list(rows[0].prompt[:shared])]), None, mask_rank)
        past = Past(layers, visible=None, positions=shared)
    prompts = [row.prompt[shared:] for row in rows]
    prompt_hidden, layers = _run_level(model, mx.array(pad_right(prompts)), past, mask_rank)
    past = _after_prompts(layers, [len(row.prompt) for row in rows], num_candidates)
    # The last token of a completion predicts nothing that is scored, so it is never run.
    inputs = [completion[:-1] or (0,) for row in rows for completion in row.completions]
    branch_hidden, _ = _run_level(model, mx.array(pad_right(inputs)), past, mask_rank)
    hidden, targets, owners = _scored_states(prompt_hidden, branch_hidden, rows, shared)
    logps = target_logps(model, hidden, mx.array(targets))
    return _sum_by(logps, owners, (num_rows, num_candidates))


def _after_prompts(
    layers: list[tuple[mx.array, mx.array]], lengths: list[int], num_candidates: int
) -> Past:
    """Describe prompts of the given full lengths as the past of their completions, K a prompt."""
    padded_length = layers[0][0].shape[2]
    repeated = mx.repeat(mx.array(lengths), num_candidates)
    visible = mx.arange(padded_length)[None, :] < repeated[:, None]
    return Past(layers, visible=visible, positions=repeated)


def _scored_states(
    prompt_hidden: mx.array, branch_hidden: mx.array, rows: Sequence[TokenRow], shared: int
) -> tuple[mx.array, list[int], list[int]]:
    """Gather the states that predict completion tokens, with their targets and owners."""
    dim = prompt_hidden.shape[-1]
    prompt_length, branch_length = prompt_hidden.shape[1], branch_hidden.shape[1]
    prompt_count = prompt_hidden.shape[0] * prompt_length
    picks: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    owner = 0
    for index, row in enumerate(rows):
        last_of_prompt = index * prompt_length + len(row.prompt) - shared - 1
        for completion in row.completions:
            start = prompt_count + owner * branch_length
            picks += [last_of_prompt, *range(start, start + len(completion) - 1)]
            targets += completion
            owners += [owner] * len(completion)
            owner += 1
    states = mx.concatenate([prompt_hidden.reshape(-1, dim), branch_hidden.reshape(-1, dim)])
    return states[mx.array(picks)], targets, owners
