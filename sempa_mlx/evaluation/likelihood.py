"""Log-likelihoods of continuations: each prompt is run once, its continuations branch off."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from sempa_mlx.data.batching import group_by_length
from sempa_mlx.model.completions import TokenRow
from sempa_mlx.model.forward import common_prefix
from sempa_mlx.model.head import judged_targets, max_positions
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.scoring import Scorer, choose_scoring

BATCH_TOKENS = 2048


class Likelihoods(NamedTuple):
    """Of the K continuations of a prompt.

    `sums` are log-probabilities in nats, (K,) float64; `is_greedy` says whether each token is the
    likeliest one, (K,) bool.
    """

    sums: np.ndarray
    is_greedy: np.ndarray


class LikelihoodRows:
    """Rows with any numbers of continuations, in batches that a model can score.

    Rows with the same number of continuations run together, and what all prompts of a section begin
    with, such as solved examples, runs once a batch. The values are those of whole sequences up to
    rounding; see `model.scoring`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        rows: Sequence[TokenRow],
        sections: Sequence[str],
        *,
        batch_tokens: int = BATCH_TOKENS,
        scoring: str = "auto",
    ) -> None:
        """Cut what the model cannot take, and try how it can score.

        Args:
            loaded: the model.
            rows: a prompt that is longer than the model's positions loses its beginning.
            sections: one a row; prompts of a section are expected to begin alike.
            batch_tokens: bound of one forward pass, of one row at least.
            scoring: `auto`, `shared` or `plain`.

        Raises:
            UsageError: `scoring` is `shared` and the model does not fit.
        """
        self._model = loaded.model
        longest = max_positions(loaded.model)
        fitting = [_cut_left(row, longest) for row in rows]
        self.num_cut = sum(before != after for before, after in zip(rows, fitting, strict=True))
        scorer = _choose(loaded, fitting, scoring)
        self.path = scorer.path
        self._batches = _batches(fitting, sections, scorer, batch_tokens)

    def score(self, on_progress: Callable[[int], None] | None = None) -> list[Likelihoods]:
        """Score all rows under the model as it is dialled at the moment.

        Args:
            on_progress: called with the number of rows done.
        """
        found: dict[int, Likelihoods] = {}
        for scorer, members, rows in self._batches:
            states = scorer.states(self._model, rows)
            logps, is_greedy = judged_targets(self._model, states.hidden, states.targets)
            sums = np.array(states.per_completion(logps), dtype=np.float64)
            misses = states.per_completion(mx.where(is_greedy, 0.0, 1.0))
            greedy = np.array(misses) == 0
            found |= {index: Likelihoods(sums[at], greedy[at]) for at, index in enumerate(members)}
            if on_progress:
                on_progress(len(members))
        return [found[index] for index in range(len(found))]


_Batch = tuple[Scorer, list[int], list[TokenRow]]


def _cut_left(row: TokenRow, longest: float) -> TokenRow:
    """Cut the prompt's beginning so that the row fits; the last token of a row is not run."""
    excess = len(row.prompt) + max(map(len, row.completions)) - 1 - longest
    return row if excess <= 0 else row._replace(prompt=row.prompt[int(excess) :] or row.prompt[-1:])


def _choose(loaded: LoadedModel, rows: Sequence[TokenRow], scoring: str) -> Scorer:
    """Try the ways to score on the longest and the shortest row, two continuations of each."""
    if not rows:
        return Scorer(shared=0, mask_rank=None)
    pairs = [
        row._replace(completions=tuple(sorted((*row.completions, *row.completions), key=len)[-2:]))
        for row in (
            max(rows, key=lambda row: len(row.prompt) + max(map(len, row.completions))),
            min(rows, key=lambda row: len(row.prompt)),
        )
    ]
    return choose_scoring(loaded.model, pairs, loaded.dtype, scoring)


def _batches(
    rows: Sequence[TokenRow], sections: Sequence[str], scorer: Scorer, batch_tokens: int
) -> list[_Batch]:
    """Put rows together that begin alike and have as many continuations, within the budget."""
    alike: dict[tuple[str, int], list[int]] = {}
    for index, (row, section) in enumerate(zip(rows, sections, strict=True)):
        alike.setdefault((section, len(row.completions)), []).append(index)
    batches: list[_Batch] = []
    for members in alike.values():
        shared = common_prefix([rows[index].prompt for index in members])
        own = replace(scorer, shared=shared) if scorer.mask_rank else scorer
        lengths = [own.own_tokens(rows[index]) for index in members]
        for group in group_by_length(lengths, batch_tokens):
            chosen = [members[place] for place in group]
            batches.append((own, chosen, [rows[index] for index in chosen]))
    return batches
