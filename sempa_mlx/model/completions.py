"""Log-probabilities of completions, each shared token computed once.

Scoring a preference row is a walk down a tree: (1) the leading tokens that all prompts share, one
row; (2) the rest of each prompt; (3) the completions, each after its own prompt. Prompts, and then
completions, are cut into groups of like length, so that little padding is run; on a CPU all three
go in one pass without any (`forest`). The output head runs only on the hidden states that predict a
completion token. `score_plain` does the same by whole sequences, for models whose layers do not fit
this scheme, and as the oracle of the tests.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from sempa_mlx.data.batching import cut_by_length
from sempa_mlx.model.forest import Branch, Forest, run_forest
from sempa_mlx.model.forward import (
    PLAIN_MASK_RANK,
    KeysValues,
    Past,
    final_hidden,
    pad_right,
    run_level,
    tokens_of_a_pass,
)
from sempa_mlx.model.head import target_logps

UNCUT = 1 << 30


class TokenRow(NamedTuple):
    """A prompt and its K candidate completions, as token ids; every part has at least one token."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]


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
    model: nn.Module,
    rows: Sequence[TokenRow],
    shared: int,
    mask_rank: int = PLAIN_MASK_RANK,
    pass_tokens: int | None = None,
) -> TargetStates:
    """Find the states that predict completion tokens, running shared tokens once.

    Args:
        model: any mlx-lm model whose layers use plain key/value caches.
        rows: preference rows with the same number of candidates K.
        shared: how many leading prompt tokens are equal in all rows (0 is allowed); every prompt
            must be longer.
        mask_rank: axes of a per-row attention mask, found by `choose_scoring`.
        pass_tokens: how many padded tokens cost as much as one more pass through the blocks (None:
            by device).

    Raises:
        SharedPrefixUnsupportedError: the model's layers do not fit.
    """
    if pass_tokens is None:
        pass_tokens = tokens_of_a_pass()
    trunk: list[tuple[KeysValues, ...]] = [()] * len(model.layers)
    past = None
    if shared:
        _, trunk = run_level(model, mx.array([list(rows[0].prompt[:shared])]), None, mask_rank)
        past = Past(trunk, visible=None, positions=shared)
    own = [row.prompt[shared:] for row in rows]
    prompts = _run_by_length(model, own, lambda _: past, mask_rank, pass_tokens)

    def after_prompts(group: list[int]) -> Past:
        parents = [branch // len(rows[0].completions) for branch in group]
        return _after_prompts(trunk, prompts, parents, [len(own[index]) for index in parents])

    # The last token of a completion predicts nothing that is scored, so it is never run.
    inputs = [completion[:-1] or (0,) for row in rows for completion in row.completions]
    branches = _run_by_length(model, inputs, after_prompts, mask_rank, pass_tokens, keeps=False)
    return _branch_targets(prompts, branches, rows, shared)


def forest_states(model: nn.Module, rows: Sequence[TokenRow], shared: int) -> TargetStates:
    """Find what `shared_states` finds in one pass without padding, where `run_forest` is exact."""
    branches = [Branch(rows[0].prompt[:shared])]
    prompts: list[int] = []
    completions: list[int] = []
    for row in rows:
        prompts.append(len(branches))
        branches.append(Branch(row.prompt[shared:], parent=0))
        completions += range(len(branches), len(branches) + len(row.completions))
        branches += [Branch(completion[:-1], prompts[-1]) for completion in row.completions]
    forest = Forest(branches)
    starts = ([forest.starts[index] for index in which] for which in (prompts, completions))
    return _target_states(run_forest(model, forest), _picks(rows, shared, *starts), rows)


class _Level(NamedTuple):
    """Rows that were run in groups of like length.

    `states` is (n, dim), all final states with the padding of each group; row i has its first at
    `starts[i]`. `layers` holds keys and values by layer, (rows, kv_heads, longest, dim), where row
    i is at `places[i]`.
    """

    states: mx.array
    starts: list[int]
    layers: list[KeysValues]
    places: list[int]


def _run_by_length(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    past_of: Callable[[list[int]], Past | None],
    mask_rank: int,
    pass_tokens: int,
    *,
    keeps: bool = True,
) -> _Level:
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
    return _Level(mx.concatenate(states), starts, layers_of_all, places)


def _joined(groups: Sequence[KeysValues]) -> KeysValues:
    """Join keys and values of groups of rows, padded to the longest."""
    longest = max(keys.shape[2] for keys, _ in groups)

    def padded(array: mx.array) -> mx.array:
        missing = longest - array.shape[2]
        return mx.pad(array, [(0, 0), (0, 0), (0, missing), (0, 0)]) if missing else array

    keys, values = zip(*groups, strict=True)
    return mx.concatenate([*map(padded, keys)]), mx.concatenate([*map(padded, values)])


def _after_prompts(
    trunk: list[tuple[KeysValues, ...]], prompts: _Level, parents: list[int], lengths: list[int]
) -> Past:
    """Describe prompts as the past of completions: whose, and how long without the shared part."""
    longest = max(lengths)
    shared = trunk[0][0][0].shape[2] if trunk[0] else 0
    layers = [
        (*above, (keys[:, :, :longest], values[:, :, :longest]))
        for above, (keys, values) in zip(trunk, prompts.layers, strict=True)
    ]
    positions = mx.array(lengths) + shared
    visible = mx.arange(shared + longest)[None, :] < positions[:, None]
    places = mx.array([prompts.places[index] for index in parents])
    return Past(layers, visible, positions, places)


def _branch_targets(
    prompts: _Level, branches: _Level, rows: Sequence[TokenRow], shared: int
) -> TargetStates:
    """Gather the states that predict completion tokens from prompts and completions."""
    begins = [len(prompts.states) + start for start in branches.starts]
    picks = _picks(rows, shared, prompts.starts, begins)
    return _target_states(mx.concatenate([prompts.states, branches.states]), picks, rows)


def _picks(
    rows: Sequence[TokenRow], shared: int, prompts: Sequence[int], completions: Sequence[int]
) -> list[int]:
    """Find the states that predict completion tokens, from where prompts and completions begin.

    The first token is predicted by the last one of the prompt, whose `shared` leading tokens stand
    elsewhere.
    """
    picks: list[int] = []
    begins = iter(completions)
    for row, start in zip(rows, prompts, strict=True):
        last_of_prompt = start + len(row.prompt) - shared - 1
        for completion in row.completions:
            begin = next(begins)
            picks += [last_of_prompt, *range(begin, begin + len(completion) - 1)]
    return picks


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
    return _summed(model, plain_states(model, rows))


def score_forest(model: nn.Module, rows: Sequence[TokenRow], shared: int) -> mx.array:
    """Return completion log-probabilities, (rows, K) float32; see `forest_states`."""
    return _summed(model, forest_states(model, rows, shared))


def score_shared(
    model: nn.Module,
    rows: Sequence[TokenRow],
    shared: int,
    mask_rank: int = PLAIN_MASK_RANK,
    pass_tokens: int | None = None,
) -> mx.array:
    """Return completion log-probabilities, (rows, K) float32; see `shared_states`."""
    return _summed(model, shared_states(model, rows, shared, mask_rank, pass_tokens))


def _summed(model: nn.Module, states: TargetStates) -> mx.array:
    return states.per_completion(target_logps(model, states.hidden, states.targets))
