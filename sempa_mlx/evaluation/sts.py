"""Semantic textual similarity: Spearman between people's scores and the cosines of embeddings.

Every score carries its protocol. `senteval`: SentEval's text as the files hold it, SICK-R test
with 4,927 pairs (SimCSE, PromptEOL and SemPA report this). `mteb`: raw text, SICK-R with all 9,927
pairs. The clean-up of sentences belongs to the embedding template and is the same under both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol
from zlib import crc32

import numpy as np

from sempa_mlx.data.records import StsPair, StsTask
from sempa_mlx.evaluation.stats import Estimate, bootstrap_spearman, cosines, mean_estimate


class EncodesTexts(Protocol):
    """Anything that turns texts into vectors."""

    def encode(
        self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Return (n, dim) float32."""
        ...


@dataclass(frozen=True, slots=True)
class StsScore:
    """The result on one task over `num_pairs` pairs.

    The task's estimate is SentEval's setting "all": one correlation over the pairs of all subsets.
    `subsets` holds one score a subset, for tasks that have some.
    """

    task: str
    protocol: str
    num_pairs: int
    estimate: Estimate
    subsets: tuple["StsScore", ...] = ()

    @property
    def spearman(self) -> float:
        """Spearman's correlation in [-1, 1], NaN if undefined."""
        return self.estimate.value


def evaluate_sts(
    encoder: EncodesTexts,
    tasks: Sequence[StsTask],
    on_progress: Callable[[int], None] | None = None,
    *,
    resamples: int = 0,
) -> list[StsScore]:
    """Score an encoder on tasks; each distinct sentence of all tasks is embedded once.

    With `resamples`, each score has a bootstrap over its pairs. The pairs drawn depend only on the
    name and size of a task or subset, so the scores of two encoders can be compared pair by pair.
    """
    options = {} if on_progress is None else {"on_progress": on_progress}
    vectors = np.asarray(encoder.encode(distinct_sentences(tasks), **options))
    return score_vectors(tasks, vectors, resamples=resamples)


def score_vectors(
    tasks: Sequence[StsTask], vectors: np.ndarray, *, resamples: int = 0
) -> list[StsScore]:
    """Score the embeddings of the tasks' `distinct_sentences`, (sentences, dim)."""
    rows = {text: index for index, text in enumerate(distinct_sentences(tasks))}
    return [_score(task, pair_cosines(task.pairs, rows, vectors), resamples) for task in tasks]


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


def pair_cosines(pairs: Sequence[StsPair], rows: dict[str, int], vectors: np.ndarray) -> np.ndarray:
    """Return the cosines of the pairs' vectors, looked up by `rows`, as (pairs,) float64."""
    left = vectors[[rows[pair.sentence1] for pair in pairs]]
    right = vectors[[rows[pair.sentence2] for pair in pairs]]
    return cosines(left, right)


def positive_rows(pairs: Sequence[StsPair], rows: dict[str, int], least: float) -> np.ndarray:
    """Return the row numbers of pairs scored `least` or more, (pairs, 2) int64."""
    near = [(rows[p.sentence1], rows[p.sentence2]) for p in pairs if p.score >= least]
    return np.array(near, dtype=np.int64).reshape(-1, 2)


def _score(task: StsTask, predicted: np.ndarray, resamples: int) -> StsScore:
    gold = np.array([pair.score for pair in task.pairs])

    def score(name: str, part: slice) -> StsScore:
        seed = crc32(f"{task.name}/{name}".encode())  # tasks of equal size draw pairs of their own
        estimate = bootstrap_spearman(gold[part], predicted[part], resamples=resamples, seed=seed)
        return StsScore(name, task.protocol, len(gold[part]), estimate)

    ends = list(accumulate(subset.num_pairs for subset in task.subsets))
    subsets = tuple(
        score(subset.name, slice(end - subset.num_pairs, end))
        for subset, end in zip(task.subsets, ends, strict=True)
    )
    whole = score(task.name, slice(None))
    return StsScore(task.name, task.protocol, len(gold), whole.estimate, subsets)


def average(scores: Sequence[StsScore]) -> Estimate:
    """Return the plain mean over tasks, as published tables do, resampled within each task."""
    return mean_estimate([score.estimate for score in scores])
