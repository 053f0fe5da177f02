"""Multiple choice by likelihood: each prompt is run once, its continuations branch off from it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sempa_mlx.data.batching import group_by_length
from sempa_mlx.data.lm_prompts import DELIMITER
from sempa_mlx.data.lm_tasks import ChoiceQuestion
from sempa_mlx.model.forward import TokenRow, common_prefix
from sempa_mlx.model.head import text_model
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.prompts import tokenize_continuations
from sempa_mlx.model.scoring import Scorer, choose_scoring

BATCH_TOKENS = 2048


class ChoiceScoring:
    """Scores the choices of questions under a model, as it is dialled at the moment.

    Questions with the same prompt are one row, and each of their choices is scored once: the two
    metrics of TruthfulQA share most of them. Rows with the same number of choices run together,
    and what all prompts of a section begin with, such as solved examples, runs once a batch. The
    values are those of whole sequences up to rounding; see `model.scoring`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        questions: Sequence[ChoiceQuestion],
        *,
        batch_tokens: int = BATCH_TOKENS,
        scoring: str = "auto",
    ) -> None:
        """Tokenise all questions, and try how the model can score them.

        Args:
            loaded: model and tokenizer.
            questions: any number of them, with any numbers of choices.
            batch_tokens: bound of one forward pass, of one question at least.
            scoring: `auto`, `shared` or `plain`.

        Raises:
            DataError: a choice adds no token to its prompt.
            UsageError: `scoring` is `shared` and the model does not fit.
        """
        self._model, self._questions = loaded.model, questions
        self._places: dict[str, dict[str, int]] = {}  # of each choice among those of its prompt
        sections: dict[str, str] = {}
        for question in questions:
            sections.setdefault(question.prompt, question.section)
            places = self._places.setdefault(question.prompt, {})
            for choice in question.choices:
                places.setdefault(choice, len(places))
        texts = [
            (prompt, [DELIMITER + choice for choice in choices])
            for prompt, choices in self._places.items()
        ]
        longest = getattr(text_model(loaded.model).args, "max_position_embeddings", None)
        rows = tokenize_continuations(texts, loaded.tokenizer)
        cut = [_cut_left(row, longest or math.inf) for row in rows]
        self.num_cut = sum(before != after for before, after in zip(rows, cut, strict=True))
        scorer = _choose(loaded, cut, scoring)
        self.path = scorer.path
        self._batches = _batches(cut, list(sections.values()), scorer, batch_tokens)

    @property
    def num_prompts(self) -> int:
        """How many distinct prompts there are."""
        return len(self._places)

    def log_likelihoods(self, on_progress: Callable[[int], None] | None = None) -> list[np.ndarray]:
        """Return the log-likelihoods of each question's choices in nats, (choices,) float64.

        Args:
            on_progress: called with the number of prompts done.
        """
        found: dict[int, np.ndarray] = {}
        for scorer, members, rows in self._batches:
            sums = np.array(scorer(self._model, rows).sums, dtype=np.float64)
            found |= dict(zip(members, sums, strict=True))
            if on_progress:
                on_progress(len(members))
        by_prompt = {prompt: found[index] for index, prompt in enumerate(self._places)}
        return [
            by_prompt[question.prompt][[self._places[question.prompt][c] for c in question.choices]]
            for question in self._questions
        ]


_Batch = tuple[Scorer, list[int], list[TokenRow]]


def _cut_left(row: TokenRow, longest: float) -> TokenRow:
    """Cut a prompt from the left so that the row fits the model, its last token not run."""
    excess = len(row.prompt) + max(map(len, row.completions)) - 1 - longest
    return row if excess <= 0 else row._replace(prompt=row.prompt[int(excess) :])


def _choose(loaded: LoadedModel, rows: Sequence[TokenRow], scoring: str) -> Scorer:
    """Try the ways to score on the longest and the shortest row, two choices of each."""
    if not rows:
        return Scorer(shared=0, mask_rank=None)
    pairs = [
        row._replace(completions=tuple(sorted(row.completions, key=len)[-2:]))
        for row in (
            max(rows, key=lambda row: len(row.prompt) + max(map(len, row.completions))),
            min(rows, key=lambda row: len(row.prompt)),
        )
    ]
    return choose_scoring(loaded.model, pairs, loaded.dtype, scoring)


def _batches(
    rows: Sequence[TokenRow], sections: Sequence[str], scorer: Scorer, batch_tokens: int
) -> list[_Batch]:
    """Put rows together that begin alike and have as many choices, within the budget."""
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


# What the likelihoods of a question come to


def accuracy(scores: np.ndarray, question: ChoiceQuestion) -> float:
    """Return 1 if the likeliest choice is true, else 0; of equal ones the first counts."""
    return float(question.is_true[int(np.argmax(scores))])


def normalised_accuracy(scores: np.ndarray, question: ChoiceQuestion) -> float:
    """Return `accuracy` of the likelihoods per character of the choices, as `acc_norm` does."""
    lengths = np.array([max(1, len(choice)) for choice in question.choices])
    return accuracy(scores / lengths, question)


def true_mass(scores: np.ndarray, question: ChoiceQuestion) -> float:
    """Return the share of the probability of all choices that true ones have (TruthfulQA MC2)."""
    shares = np.exp(scores - scores.max())
    return float(shares[np.array(question.is_true)].sum() / shares.sum())


METRICS: dict[str, Callable[[np.ndarray, ChoiceQuestion], float]] = {
    "acc": accuracy,
    "acc_norm": normalised_accuracy,
    "true_mass": true_mass,
}
