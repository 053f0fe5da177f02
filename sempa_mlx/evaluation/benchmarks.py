"""Generation benchmarks of one model: every figure with its error, its items and its shots."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from sempa_mlx.data.lm_tasks import ChoiceTask, LmTask, WorkedTask
from sempa_mlx.evaluation.choices import METRICS, ChoiceScoring
from sempa_mlx.evaluation.likelihood import BATCH_TOKENS
from sempa_mlx.evaluation.means import Mean, plain_mean, pooled_mean
from sempa_mlx.evaluation.worked import MAX_TOKENS, READINGS, STOPS, same_number
from sempa_mlx.model.forward import final_hidden
from sempa_mlx.model.generate import continue_greedily
from sempa_mlx.model.head import head_logits
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.prompts import tokenize_prompts

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """A benchmark's mean over its items, in [0, 1], under one metric."""

    task: str
    metric: str
    shots: int
    mean: Mean


class Benchmarks:
    """Tasks, made ready for one model; they can be measured at any scale of its adapter."""

    def __init__(
        self, loaded: LoadedModel, tasks: Sequence[LmTask], *, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        """Tokenise the questions, and find how the model can score choices.

        Raises:
            DataError: a choice adds no token to its prompt.
        """
        self._loaded, self._tasks = loaded, tasks
        questions = [q for task in tasks if isinstance(task, ChoiceTask) for q in task.questions]
        self._scoring = ChoiceScoring(loaded, questions, batch_tokens=batch_tokens)
        self._prompts = {
            task.name: tokenize_prompts([q.prompt for q in task.questions], loaded.tokenizer)
            for task in tasks
            if isinstance(task, WorkedTask)
        }

    @property
    def num_prompts(self) -> int:
        """How many prompts are run, which is what progress counts."""
        return self._scoring.num_prompts + sum(map(len, self._prompts.values()))

    @property
    def num_cut(self) -> int:
        """How many prompts lost their beginning because the model takes no more tokens."""
        return self._scoring.rows.num_cut

    def figures(self, on_progress: Progress | None = None) -> list[Figure]:
        """Measure the model as it is dialled now; one figure a metric, in the order of the tasks.

        Args:
            on_progress: called with the number of prompts done.
        """
        scores = iter(self._scoring.log_likelihoods(on_progress))
        found: list[Figure] = []
        for task in self._tasks:
            if isinstance(task, ChoiceTask):
                own = [next(scores) for _ in task.questions]
                values = {
                    name: [METRICS[name](*pair) for pair in zip(own, task.questions, strict=True)]
                    for name in task.metrics
                }
                sections = [question.section for question in task.questions]
            else:
                values = self._worked(task, on_progress)
                sections = [""] * len(task.questions)
            found += [
                Figure(task.name, name, task.shots, _mean(each, sections))
                for name, each in values.items()
            ]
        return found

    def _worked(self, task: WorkedTask, on_progress: Progress | None) -> dict[str, list[float]]:
        prompts = self._prompts[task.name]
        if prompts and not _predicts(self._loaded, prompts[0]):
            return dict.fromkeys(READINGS, [math.nan] * len(prompts))
        texts = continue_greedily(
            self._loaded,
            prompts,
            max_tokens=MAX_TOKENS,
            stops=STOPS,
            on_progress=on_progress,
        )
        return {
            name: [
                float(same_number(read(text), question.answer))
                for text, question in zip(texts, task.questions, strict=True)
            ]
            for name, read in READINGS.items()
        }


def _predicts(loaded: LoadedModel, tokens: Sequence[int]) -> bool:
    """Tell whether the model has a likeliest token at all, as one with NaN weights has not."""
    last = final_hidden(loaded.model, [tokens])[0, -1:]
    return not bool(mx.isnan(head_logits(loaded.model, last)).any())


def _mean(values: Sequence[float], sections: Sequence[str]) -> Mean:
    """Mean a mean; the sections of a task, such as MMLU's subjects, are fixed, not a sample."""
    if len({*sections}) < 2:
        return plain_mean(values)
    parts: dict[str, list[float]] = {}
    for value, section in zip(values, sections, strict=True):
        parts.setdefault(section, []).append(value)
    return pooled_mean(list(parts.values()))
