"""Semantic textual similarity: Spearman between people's scores and the cosines of embeddings.

Every score carries its protocol. `senteval`: SentEval's text as the files hold it, SICK-R test
with 4,927 pairs (SimCSE, PromptEOL and SemPA report this). `mteb`: raw text, SICK-R with all 9,927
pairs. The clean-up of sentences belongs to the embedding template and is the same under both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sempa_mlx.data.records import StsPair, StsTask
from sempa_mlx.evaluation.stats import cosines, spearman


class EncodesTexts(Protocol):
    """Anything that turns texts into vectors."""

    def encode(
        self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Return (n, dim) float32."""
        ...


@dataclass(frozen=True, slots=True)
class StsScore:
    """The result on one task: Spearman in [-1, 1] (NaN if undefined), over `num_pairs` pairs."""

    task: str
    protocol: str
    num_pairs: int
    spearman: float


def evaluate_sts(
    encoder: EncodesTexts,
    tasks: Sequence[StsTask],
    on_progress: Callable[[int], None] | None = None,
) -> list[StsScore]:
    """Score an encoder on tasks; each distinct sentence of all tasks is embedded once."""
    texts = distinct_sentences(tasks)
    vectors = encoder.encode(texts, on_progress=on_progress)
    rows = {text: index for index, text in enumerate(texts)}
    return [
        StsScore(
            task.name, task.protocol, len(task.pairs), pair_spearman(task.pairs, rows, vectors)
        )
        for task in tasks
    ]


def distinct_sentences(tasks: Sequence[StsTask]) -> list[str]:
    """List every sentence of the tasks once, in order of appearance."""
    return list(
        dict.fromkeys(
            text
            for task in tasks
            for pair in task.pairs
            for text in (pair.sentence1, pair.sentence2)
        )
    )


def pair_spearman(pairs: Sequence[StsPair], rows: dict[str, int], vectors: np.ndarray) -> float:
    """Correlate the pairs' scores with the cosines of their vectors, looked up by `rows`."""
    left = vectors[[rows[pair.sentence1] for pair in pairs]]
    right = vectors[[rows[pair.sentence2] for pair in pairs]]
    return spearman(np.array([pair.score for pair in pairs]), cosines(left, right))


def average(scores: Sequence[StsScore]) -> float:
    """Return the plain mean over tasks, as published tables do."""
    return float(np.mean([score.spearman for score in scores]))
