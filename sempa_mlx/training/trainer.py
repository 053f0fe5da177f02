"""The training loop: step, guard, evaluate, keep the best; it tells by events.

It prints nothing and writes nothing: whoever iterates over the events does. Between two events the
whole state of a run is the adapter, the optimizer and `Progress`: the order of the data and the
dropout masks are functions of (seed, step), so a run continues bit for bit from these.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from sempa_mlx.config import EvalConfig, TrainConfig
from sempa_mlx.errors import RunError
from sempa_mlx.model.lora import trained_weights
from sempa_mlx.runtime import is_gpu, peak_memory_gb
from sempa_mlx.training.contribution import Contribution, Gradients, Term, pair_metrics
from sempa_mlx.training.events import Evaluated, Event, Score, StepDone, StepSkipped
from sempa_mlx.training.memory import estimate_peak_gb
from sempa_mlx.training.optimizer import AdapterOptimizer
from sempa_mlx.training.schedule import learning_rate, plan_steps
from sempa_mlx.world import World

CPU_MICRO_BATCH_TOKENS = 2048
GPU_MICRO_BATCH_TOKENS = 8192
MAX_BAD_STEPS = 3
EXACT = 1e-3  # how far the first loss of a float32 model may be from the expected one
SEEDS_A_STEP = 1 << 20  # room for the draws of all processes in one step


def micro_batch_tokens(settings: TrainConfig) -> int:
    """Return the bound of one forward pass, in tokens."""
    default = GPU_MICRO_BATCH_TOKENS if is_gpu() else CPU_MICRO_BATCH_TOKENS
    return settings.micro_batch_tokens or default


@dataclass(slots=True)
class Progress:
    """How far a run is; with adapter and optimizer all that continuing it takes.

    `evaluated` is the last step that was evaluated (-1: none), `stale` counts evaluations without a
    better score, `bad_steps` skipped steps in a row; `is_checked` tells that the first loss was
    right.
    """

    step: int = 0
    evaluated: int = -1
    best_step: int = 0
    best_score: float = -math.inf
    best_scale: float = 1.0
    stale: int = 0
    bad_steps: int = 0
    is_checked: bool = False


class Trainer:
    """Trains the adapter on a model by the terms of a loss."""

    def __init__(  # noqa: PLR0913 - a loop has this many parts
        self,
        model: nn.Module,
        terms: dict[str, Term],
        lengths: Sequence[int],
        settings: TrainConfig,
        *,
        plus_ratio: float = 1.0,
        tolerance: float = EXACT,
        world: World | None = None,
    ) -> None:
        """Plan the run; the adapter must be attached already.

        Args:
            model: the model with its adapter.
            terms: the loss, by name; all read the same rows.
            lengths: tokens of each row: a step holds rows of like length.
            settings: the loop.
            plus_ratio: rate of B matrices over that of the others.
            tolerance: of the check of the first loss; rounding in half precision needs more.
            world: the processes that share every batch.
        """
        self._model, self._terms, self._settings = model, terms, settings
        self._world, self._tolerance = world or World(), tolerance
        self._plan = plan_steps(lengths, settings)
        self._optimizer = AdapterOptimizer(settings, plus_ratio)
        self.progress = Progress()

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return len(self._plan)

    def estimate_peak_gb(self) -> float:
        """Return how much memory the steps will take at most, in GB, by trying small ones."""
        self._model.train()
        found = estimate_peak_gb(list(self._terms.values()), self._plan)
        self._model.eval()
        return found

    def optimizer_state(self) -> dict[str, mx.array]:
        """Return the optimizer's state as flat, named tensors."""
        return self._optimizer.state()

    def restore(
        self, progress: Progress, adapter: dict[str, mx.array], optimizer: dict[str, mx.array]
    ) -> None:
        """Continue from what `progress`, `trained_weights` and `optimizer_state` were."""
        self.progress = progress
        self._model.load_weights(list(adapter.items()), strict=False)
        self._optimizer.restore(optimizer)

    def run(self, evaluate: Callable[[int], Score], evaluation: EvalConfig) -> Iterator[Event]:
        """Train, yielding events; the base counts as step 0 of the search for the best step.

        Args:
            evaluate: scores the model as it is now, after the step given.
            evaluation: how often to evaluate, and when to give up.

        Raises:
            RunError: the first loss is not the one of equal models, or steps keep failing.
        """
        now = self.progress
        while True:
            if self._is_due(evaluation.every):
                yield self._evaluate(evaluate(now.step))
            if now.step == self.num_steps or self._gives_up(evaluation.patience):
                return
            event = self._step(now.step + 1)
            now.step = event.step
            now.bad_steps = now.bad_steps + 1 if isinstance(event, StepSkipped) else 0
            yield event
            if now.bad_steps >= MAX_BAD_STEPS:
                raise RunError(
                    f"{now.bad_steps} steps in a row had no finite loss or gradient "
                    f"(last: {now.step})",
                    state=f"the best adapter, of step {now.best_step}, is kept",
                )

    def _is_due(self, every: int) -> bool:
        now = self.progress
        return now.evaluated != now.step and (now.step % every == 0 or now.step == self.num_steps)

    def _gives_up(self, patience: int | None) -> bool:
        return patience is not None and self.progress.stale >= patience

    def _evaluate(self, score: Score) -> Evaluated:
        now = self.progress
        # A constant model has an undefined score (NaN), which loses to every other.
        improved = now.step == 0 or not (math.isnan(score.value) or score.value <= now.best_score)
        if improved:
            now.best_score, now.best_scale, now.best_step = score.value, score.scale, now.step
        now.stale = 0 if improved else now.stale + 1
        now.evaluated = now.step
        weights = trained_weights(self._model) if improved else None
        return Evaluated(now.step, score, now.best_step, weights)

    def _step(self, step: int) -> StepDone | StepSkipped:
        start = time.perf_counter()
        batch = self._plan[step - 1]
        parts, gradients = self._contributions(step, batch)
        gradients, norm = optim.clip_grad_norm(gradients, self._settings.clip)
        metrics, tokens = self._metrics(parts, len(batch))
        metrics["grad_norm"] = norm.item()
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            return StepSkipped(step, batch)
        if not self.progress.is_checked:  # not the same as step 1, which may have been skipped
            self._check_first_loss(parts, metrics)
            self.progress.is_checked = True
        rate = learning_rate(step, self.num_steps, self._settings)
        self._optimizer.update(self._model, gradients, rate)
        seconds = time.perf_counter() - start
        metrics |= {
            "learning_rate": rate,
            "pairs_per_second": len(batch) / seconds,
            "tokens_per_second": tokens / seconds,
            "peak_memory_gb": peak_memory_gb(),
        }
        return StepDone(step, self.num_steps, metrics)

    def _contributions(
        self, step: int, batch: list[int]
    ) -> tuple[dict[str, Contribution], Gradients]:
        """Let every term look at the batch; add their gradients over terms and processes."""
        seed = (self._settings.seed + step) * SEEDS_A_STEP
        self._model.train()
        parts = {
            name: term.contribution(batch, self._world, seed) for name, term in self._terms.items()
        }
        self._model.eval()
        total = tree_map(mx.zeros_like, self._model.trainable_parameters())
        for part in parts.values():
            if part.gradients:
                total = tree_map(mx.add, total, part.gradients)
        total = self._world.total(total)
        mx.eval(total)
        return parts, total

    def _metrics(
        self, parts: dict[str, Contribution], num_pairs: int
    ) -> tuple[dict[str, float], float]:
        """Reduce to sums of losses and means over the pairs of all processes; count tokens."""
        sums = {
            f"loss/{name}": loss
            for term, part in parts.items()
            for name, loss in (part.parts or {term: part.loss}).items()
        }
        sums["tokens"] = float(sum(part.tokens for part in parts.values()))
        for part in parts.values():
            if part.has_pairs:
                sums |= pair_metrics(part.rewards, part.logps)
        totals = dict(zip(sums, self._world.total_of(list(sums.values())), strict=True))
        tokens = totals.pop("tokens")
        losses = {name: totals.pop(name) for name in list(totals) if name.startswith("loss/")}
        metrics = {"loss": sum(losses.values())}
        if len(losses) > 1:
            metrics |= losses
        return metrics | {name: value / num_pairs for name, value in totals.items()}, tokens

    def _check_first_loss(self, parts: dict[str, Contribution], metrics: dict[str, float]) -> None:
        """Demand the loss of equal models: a fresh adapter changes nothing, so it must be known."""
        known = [part for part in parts.values() if part.expected_loss is not None]
        if not known:
            return
        loss, expected, margin = (
            sum(part.loss for part in known),
            sum(part.expected_loss or 0.0 for part in known),
            metrics["rewards/margins"],
        )
        # A loss that is large where models are equal is steep there: sppo_hard of a small beta.
        allowed = self._tolerance * max(1.0, abs(expected))
        if abs(loss - expected) > allowed or abs(margin) > self._tolerance:
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
