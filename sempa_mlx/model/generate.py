"""Continuations of prompts, many at a time, by mlx-lm's own batched generator."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import KVCache, make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from sempa_mlx.model.forward import common_prefix
from sempa_mlx.model.head import text_model
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.sampling import GREEDY, Draw

BATCH_ROWS = 16
PROBE_TOKENS = 24
TOKENS_A_CHARACTER = 4  # at most: one a byte of UTF-8


@dataclass(frozen=True, slots=True)
class Start:
    """A prompt of at least one token, at most how many follow (>= 1), and how they are drawn."""

    prompt: tuple[int, ...]
    max_tokens: int
    draw: Draw = GREEDY


@dataclass(frozen=True, slots=True)
class Continuation:
    """A text without stop texts and control tokens; `is_ended` unless it was cut at its most."""

    text: str
    is_ended: bool


def continue_greedily(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stops: Sequence[str] = (),
    batch_rows: int = BATCH_ROWS,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Continue prompts with the most likely token each time; see `continue_all`."""
    found = continue_all(
        loaded,
        [Start(tuple(prompt), max_tokens) for prompt in prompts],
        stops=stops,
        batch_rows=batch_rows,
        on_progress=on_progress,
    )
    return [each.text for each in found]


def continue_all(
    loaded: LoadedModel,
    starts: Sequence[Start],
    *,
    stops: Sequence[str] = (),
    batch_rows: int = BATCH_ROWS,
    on_progress: Callable[[int], None] | None = None,
) -> list[Continuation]:
    """Continue prompts, each as it is to be drawn.

    Leading tokens that all prompts share are run once, and so are equal prompts that follow each
    other. A finished row makes room for the next. What else runs changes a row's rounding only.

    Args:
        loaded: the model, its adapter as dialled, and its tokenizer.
        starts: what to continue; rows that share their `draw` are drawn in one call.
        stops: a continuation ends before the first of these texts, and at an end token.
        batch_rows: how many run together; one at a time if the model does not fit mlx-lm's batches.
        on_progress: called with 1 for every prompt done.

    Returns:
        Continuations in input order.
    """
    prompts = [start.prompt for start in starts]
    if batch_rows > 1 and len(prompts) > 1 and not batches_exactly(loaded.model, prompts[0]):
        batch_rows = 1
    beginnings = _Beginnings(loaded.model, prompts)
    waiting = list(reversed(range(len(starts))))
    running: dict[int, _Row] = {}  # by the generator's own number
    found: dict[int, Continuation] = {}
    ends = [[token] for token in sorted(loaded.tokenizer.eos_token_ids)]
    with closing(
        BatchGenerator(loaded.model, stop_tokens=ends, completion_batch_size=batch_rows)
    ) as generator:
        while waiting or running:
            while waiting and len(running) < batch_rows:
                index = waiting.pop()
                start = starts[index]
                rest, cache = beginnings.of(start.prompt)
                (number,) = generator.insert(
                    [rest], [start.max_tokens], caches=cache, samplers=[start.draw]
                )
                running[number] = _Row(index, loaded.tokenizer, stops)
            for response in generator.next_generated():
                row = running[response.uid]
                reason = row.take(response.token, response.finish_reason)
                if reason is None:
                    continue
                if response.finish_reason is None:
                    generator.remove([response.uid])
                found[row.index] = Continuation(row.text(), is_ended=reason == "stop")
                del running[response.uid]
                if on_progress:
                    on_progress(1)
    return [found[index] for index in range(len(starts))]


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


class _Beginnings:
    """Keys and values of what prompts begin with, each run once.

    Only plain key/value caches are shared: others do not keep all they were given.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[tuple[int, ...]]) -> None:
        """Run what all prompts begin with."""
        self._model = model
        self._cache: list[Any] | None = make_prompt_cache(model)
        self._shared = common_prefix(prompts) if len(prompts) > 1 else 0
        if not self._shared or any(type(layer) is not KVCache for layer in self._cache):
            self._shared, self._cache = 0, None
        else:
            self._run(prompts[0][: self._shared], self._cache)
        counts = Counter(prompts)
        self._repeated = {prompt for prompt, count in counts.items() if count > 1}
        self._last: tuple[int, ...] = ()
        self._last_cache: list[Any] = []

    def of(self, prompt: tuple[int, ...]) -> tuple[list[int], list[list[Any]] | None]:
        """Return the tokens of a prompt that are to be run, and a copy of the cache before them."""
        if self._cache is None:
            return list(prompt), None
        if prompt not in self._repeated or self._shared == len(prompt) - 1:
            return list(prompt[self._shared :]), [deepcopy(self._cache)]
        if prompt != self._last:
            self._last, self._last_cache = prompt, deepcopy(self._cache)
            self._run(prompt[self._shared : -1], self._last_cache)
        return [prompt[-1]], [deepcopy(self._last_cache)]

    def _run(self, tokens: Sequence[int], cache: list[Any]) -> None:
        text_model(self._model).model(mx.array([list(tokens)]), cache=cache)
        mx.eval([layer.state for layer in cache])


class _Row:
    """One continuation as it grows."""

    def __init__(self, index: int, tokenizer: TokenizerWrapper, stops: Sequence[str]) -> None:
        self.index = index
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._reach = TOKENS_A_CHARACTER * max(map(len, self._stops), default=0)
        self._tokens: list[int] = []

    def take(self, token: int, reason: str | None) -> str | None:
        """Take up a token; return why the text ends now, `stop` or `length`, or None."""
        if reason == "stop":  # an end token is no text
            return reason
        self._tokens.append(token)
        return "stop" if self._has_stop() else reason

    def _has_stop(self) -> bool:
        """Tell whether a stop text, which may be a control token's name, stands at the end now."""
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
