"""Multiple choice by likelihood, and what the likelihoods of a question come to."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from sempa_mlx.data.lm_prompts import DELIMITER
from sempa_mlx.data.lm_tasks import ChoiceQuestion
from sempa_mlx.evaluation.likelihood import BATCH_TOKENS, LikelihoodRows
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.prompts import tokenize_continuations


class ChoiceScoring:
    """Scores the choices of questions under a model, as it is dialled at the moment.

    Questions with the same prompt are one row, and each of their choices is scored once: the two
    metrics of TruthfulQA share most of them.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        questions: Sequence[ChoiceQuestion],
        *,
        batch_tokens: int = BATCH_TOKENS,
        scoring: str = "auto",
    ) -> None:
        """Tokenise all questions, and try how the model can score them; see `LikelihoodRows`.

        Raises:
            DataError: a choice adds no token to its prompt.
            UsageError: `scoring` is `shared` and the model does not fit.
        """
        self._questions = questions
        self._places: dict[str, dict[str, int]] = {}  # of each choice among those of its prompt
        sections: dict[str, str] = {}
        for question in questions:
            sections.setdefault(question.prompt, question.section)
            places = self._places.setdefault(question.prompt, {})
            for choice in question.choices:
                places.setdefault(choice, len(places))
        texts = [
            (prompt, [DELIMITER + choice for choice in places])
            for prompt, places in self._places.items()
        ]
        self.rows = LikelihoodRows(
            loaded,
            tokenize_continuations(texts, loaded.tokenizer),
            list(sections.values()),
            batch_tokens=batch_tokens,
            scoring=scoring,
        )

    @property
    def num_prompts(self) -> int:
        """How many distinct prompts there are."""
        return len(self._places)

    def log_likelihoods(self, on_progress: Callable[[int], None] | None = None) -> list[np.ndarray]:
        """Return the log-likelihoods of each question's choices in nats, (choices,) float64.

        Args:
            on_progress: called with the number of prompts done.
        """
        found = dict(zip(self._places, self.rows.score(on_progress), strict=True))
        return [
            found[prompt].sums[[self._places[prompt][choice] for choice in question.choices]]
            for question in self._questions
            for prompt in [question.prompt]
        ]


def accuracy(scores: np.ndarray, question: ChoiceQuestion) -> float:
    """Return 1 if the likeliest choice is true, else 0; of equal ones the first counts.

    NaN if a likelihood is undefined: then none is the likeliest.
    """
    if np.isnan(scores).any():
        return math.nan
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
