"""The training loop: step, accumulate, guard, evaluate, keep the best; it tells by events.

It prints nothing and writes nothing: whoever iterates over the events does.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map

from sempa_mlx.config import EvalConfig, ObjectiveConfig, TrainConfig
from sempa_mlx.data.batching import group_by_length
from sempa_mlx.errors import RunError
from sempa_mlx.model.forward import TokenRow
from sempa_mlx.model.lora import adapter_weights
from sempa_mlx.model.scoring import Scorer
from sempa_mlx.runtime import is_gpu, peak_memory_gb
from sempa_mlx.training.objectives import implicit_rewards, plackett_luce_nll
from sempa_mlx.training.reference import Reference
from sempa_mlx.training.schedule import learning_rate, plan_steps

CPU_MICRO_BATCH_TOKENS = 2048
GPU_MICRO_BATCH_TOKENS = 8192
MAX_BAD_STEPS = 3
FIRST_LOSS_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class StepDone:
    """An optimizer step: its metrics, under TRL's names."""

    step: int
    total: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class StepSkipped:
    """A step whose loss or gradient was not finite: no update was made."""

    step: int
    rows: list[int]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A dev evaluation; `weights` are the adapter's if it is the best so far, else None."""

    step: int
    score: float
    best_step: int
    weights: dict[str, mx.array] | None


Event = StepDone | StepSkipped | Evaluated


@dataclass(slots=True)
class _Sums:
    """Per-step sums over pairs, filled micro-batch by micro-batch."""

    loss: float = 0.0
    rewards: list[list[float]] = field(default_factory=list)
    logps: list[list[float]] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """Reduce to means over pairs; accuracy is the share of pairs, not of batches."""
        pairs = len(self.rewards)
        chosen = [row[0] for row in self.rewards]
        rejected = [row[-1] for row in self.rewards]
        wins = sum(c > r for c, r in zip(chosen, rejected, strict=True))
        return {
            "loss": self.loss,
            "rewards/chosen": sum(chosen) / pairs,
            "rewards/rejected": sum(rejected) / pairs,
            "rewards/margins": (sum(chosen) - sum(rejected)) / pairs,
            "rewards/accuracies": wins / pairs,
            "logps/chosen": sum(row[0] for row in self.logps) / pairs,
            "logps/rejected": sum(row[-1] for row in self.logps) / pairs,
        }


class Trainer:
    """Trains the adapter on a model by preference rows."""

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[TokenRow],
        scorer: Scorer,
        settings: TrainConfig,
        objective: ObjectiveConfig,
    ) -> None:
        """Plan the run; the adapter must be attached already."""
        self._model, self._rows, self._scorer = model, rows, scorer
        self._settings, self._objective = settings, objective
        default_tokens = GPU_MICRO_BATCH_TOKENS if is_gpu() else CPU_MICRO_BATCH_TOKENS
        self._micro_batch_tokens = settings.micro_batch_tokens or default_tokens
        self._reference = Reference(model, scorer, rows)
        self._plan = plan_steps([scorer.own_tokens(row) for row in rows], settings)
        self._is_checked = False
        # torch's Adam corrects the bias of its first steps; mlx's does so only on request.
        self._optimizer = optim.AdamW(
            learning_rate=settings.learning_rate,
            betas=[0.9, settings.beta2],
            weight_decay=settings.weight_decay,
            bias_correction=True,
        )
        self._loss_and_grad = nn.value_and_grad(model, self._loss)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return len(self._plan)

    def run(self, evaluate: Callable[[], float], evaluation: EvalConfig) -> Iterator[Event]:
        """Train, yielding events; the base counts as step 0 of the search for the best step.

        Args:
            evaluate: scores the model as it is now; higher is better.
            evaluation: how often to evaluate, and when to give up.

        Raises:
            RunError: the first loss is not the one of equal models, or steps keep failing.
        """
        best_score, best_step, stale = evaluate(), 0, 0
        yield Evaluated(0, best_score, 0, adapter_weights(self._model))
        bad_steps = 0
        for step, indices in enumerate(self._plan, start=1):
            mx.random.seed(self._settings.seed + step)  # dropout depends on (seed, step) alone
            event = self._step(step, indices)
            yield event
            bad_steps = bad_steps + 1 if isinstance(event, StepSkipped) else 0
            if bad_steps == MAX_BAD_STEPS:
                raise RunError(
                    f"{bad_steps} steps in a row had no finite loss or gradient (last: {step})",
                    state=f"the best adapter, of step {best_step}, is kept",
                )
            if step % evaluation.every and step != self.num_steps:
                continue
            score = evaluate()
            # A constant model has an undefined score (NaN), which loses to every other.
            improved = not (math.isnan(score) or score <= best_score)
            if improved:
                best_score, best_step, stale = score, step, 0
            else:
                stale += 1
            weights = adapter_weights(self._model) if improved else None
            yield Evaluated(step, score, best_step, weights)
            if evaluation.patience is not None and stale >= evaluation.patience:
                return

    def _step(self, step: int, indices: list[int]) -> StepDone | StepSkipped:
        start = time.perf_counter()
        sums, grads, tokens = self._accumulate(indices)
        grads, norm = optim.clip_grad_norm(grads, self._settings.clip)
        grad_norm = norm.item()
        if not (math.isfinite(sums.loss) and math.isfinite(grad_norm)):
            return StepSkipped(step, indices)
        metrics = sums.metrics()
        if not self._is_checked:  # not the same as step 1, which may have been skipped
            self._check_first_loss(metrics)
            self._is_checked = True
        rate = learning_rate(step, self.num_steps, self._settings)
        self._optimizer.learning_rate = rate
        self._optimizer.update(self._model, grads)
        mx.eval(self._model.trainable_parameters(), self._optimizer.state)
        seconds = time.perf_counter() - start
        metrics |= {
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "pairs_per_second": len(indices) / seconds,
            "tokens_per_second": tokens / seconds,
            "peak_memory_gb": peak_memory_gb(),
        }
        return StepDone(step, self.num_steps, metrics)

    def _accumulate(self, indices: list[int]) -> tuple[_Sums, dict[str, mx.array], int]:
        """Sum loss and gradients over micro-batches that fit the token budget."""
        lengths = [self._scorer.own_tokens(self._rows[index]) for index in indices]
        sums, tokens = _Sums(), 0
        total: dict[str, mx.array] = {}
        self._model.train()
        for group in group_by_length(lengths, self._micro_batch_tokens):
            members = [indices[place] for place in group]
            rows = [self._rows[index] for index in members]
            reference = self._reference.logps(members)
            (loss, policy), grads = self._loss_and_grad(rows, reference, len(indices))
            total = tree_map(mx.add, total, grads) if total else grads
            mx.eval(loss, policy, total)
            sums.loss += loss.item()
            rewards = implicit_rewards(policy, reference, self._objective.beta)
            sums.logps += np.array(policy).tolist()
            sums.rewards += np.array(rewards).tolist()
            tokens += self._scorer.tokens(rows)
        self._model.eval()
        return sums, total, tokens

    def _loss(
        self, rows: Sequence[TokenRow], reference: mx.array, batch_size: int
    ) -> tuple[mx.array, mx.array]:
        """Return the micro-batch's share of the step's mean loss, and its log-probabilities."""
        policy = self._scorer(self._model, rows)
        scores = implicit_rewards(policy, reference, self._objective.beta)
        return plackett_luce_nll(scores).sum() / batch_size, policy

    def _check_first_loss(self, metrics: dict[str, float]) -> None:
        """Demand the loss of equal models: a fresh adapter changes nothing, so it must be ln K!."""
        expected = math.log(math.factorial(len(self._rows[0].completions)))
        loss, margin = metrics["loss"], metrics["rewards/margins"]
        if abs(loss - expected) > FIRST_LOSS_TOLERANCE or abs(margin) > FIRST_LOSS_TOLERANCE:
            raise RunError(
                f"the first loss is {loss:.4f} with margin {margin:.4f}; a fresh adapter must "
                f"give {expected:.4f} and 0. The reference is not the untouched base: masks, "
                "template or adapter are wrong",
                state="nothing was trained",
            )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return (trainable, all) parameter counts."""
    trainable = sum(value.size for _, value in tree_flatten(model.trainable_parameters()))
    return trainable, sum(value.size for _, value in tree_flatten(model.parameters()))
