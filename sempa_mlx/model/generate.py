"""Greedy continuations of prompts, many at a time, by mlx-lm's own batched generator."""

from collections.abc import Callable, Sequence
from contextlib import closing
from copy import deepcopy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from sempa_mlx.model.forward import common_prefix
from sempa_mlx.model.head import text_model
from sempa_mlx.model.load import LoadedModel

BATCH_ROWS = 16
PROBE_TOKENS = 24
TOKENS_A_CHARACTER = 4  # at most: one a byte of UTF-8


def continue_greedily(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stops: Sequence[str] = (),
    batch_rows: int = BATCH_ROWS,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Continue prompts with the most likely token each time.

    Leading tokens that all prompts share are run once. A finished row makes room for the next.

    Args:
        loaded: the model, its adapter as dialled, and its tokenizer.
        prompts: token ids, each at least one.
        max_tokens: longest continuation, >= 1.
        stops: a continuation ends before the first of these texts, and at an end token.
        batch_rows: how many run together; one at a time if the model does not fit mlx-lm's batches.
        on_progress: called with 1 for every prompt done.

    Returns:
        Texts in input order, without stop texts and control tokens.
    """
    if batch_rows > 1 and len(prompts) > 1 and not batches_exactly(loaded.model, prompts[0]):
        batch_rows = 1
    shared, cache = _shared_cache(loaded.model, prompts)
    waiting = list(reversed(range(len(prompts))))
    running: dict[int, _Row] = {}  # by the generator's own number
    texts: dict[int, str] = {}
    ends = [[token] for token in sorted(loaded.tokenizer.eos_token_ids)]
    with closing(
        BatchGenerator(loaded.model, stop_tokens=ends, completion_batch_size=batch_rows)
    ) as generator:
        while waiting or running:
            while waiting and len(running) < batch_rows:
                index = waiting.pop()
                rest = list(prompts[index][shared:])
                caches = [deepcopy(cache)] if cache else None
                (number,) = generator.insert([rest], [max_tokens], caches=caches)
                running[number] = _Row(index, loaded.tokenizer, stops)
            for response in generator.next_generated():
                row = running[response.uid]
                ended = response.finish_reason is not None
                stopped = response.finish_reason != "stop" and row.stops_after(response.token)
                if stopped and not ended:
                    generator.remove([response.uid])
                if stopped or ended:
                    texts[row.index] = running.pop(response.uid).text()
                    if on_progress:
                        on_progress(1)
    return [texts[index] for index in range(len(prompts))]


def batches_exactly(model: nn.Module, tokens: Sequence[int]) -> bool:
    """Tell whether mlx-lm's batches give this model's own predictions on rows of unlike length.

    They do not for Gemma 2, whose attention takes masks of another rank: an error, or other tokens.
    """
    probe = [list(tokens[:2]), [*tokens[-PROBE_TOKENS:], *tokens[:2]]]
    alone = [_first_logps(model, [row])[0] for row in probe]
    try:
        together = _first_logps(model, probe)
    except ValueError:
        return False
    bound = 1e-3 if alone[0].dtype == mx.float32 else 0.3
    return all(
        bool(mx.allclose(mx.exp(one), mx.exp(other), rtol=0, atol=bound))
        for one, other in zip(alone, together, strict=True)
    )


def _first_logps(model: nn.Module, rows: Sequence[list[int]]) -> list[mx.array]:
    """Return the log-probabilities of the token after each row."""
    with closing(BatchGenerator(model)) as generator:
        numbers = generator.insert([list(row) for row in rows], [1] * len(rows))
        found: dict[int, mx.array] = {}
        while len(found) < len(rows):
            found |= {each.uid: each.logprobs for each in generator.next_generated()}
    return [found[number] for number in numbers]


def _shared_cache(
    model: nn.Module, prompts: Sequence[Sequence[int]]
) -> tuple[int, list[Any] | None]:
    """Run what all prompts begin with; return its length and its keys and values.

    Only plain key/value caches are shared: others do not keep all they were given.
    """
    cache = make_prompt_cache(model)
    shared = common_prefix(prompts) if len(prompts) > 1 else 0
    if not shared or any(type(layer) is not KVCache for layer in cache):
        return 0, None
    text_model(model).model(mx.array([list(prompts[0][:shared])]), cache=cache)
    mx.eval([layer.state for layer in cache])
    return shared, cache


class _Row:
    """One continuation as it grows."""

    def __init__(self, index: int, tokenizer: TokenizerWrapper, stops: Sequence[str]) -> None:
        self.index = index
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._reach = TOKENS_A_CHARACTER * max(map(len, self._stops), default=0)
        self._tokens: list[int] = []

    def stops_after(self, token: int) -> bool:
        """Take up a token; tell whether a stop text stands at the end now."""
        self._tokens.append(token)
        if not self._stops:
            return False
        end = self._tokenizer.decode(self._tokens[-self._reach :])
        return any(stop in end for stop in self._stops)

    def text(self) -> str:
        """Return the text before the first stop text."""
        text = str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))
        for stop in self._stops:
            text = text.split(stop)[0]
        return text
