"""The optimizer: AdamW as torch computes it, with LoRA+ rates for the B matrices."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from sempa_mlx.config import TrainConfig
from sempa_mlx.training.contribution import Gradients

BETA1 = 0.9


class AdapterOptimizer:
    """AdamW over the adapter; B matrices learn `plus_ratio` times as fast (arXiv 2402.12354)."""

    def __init__(self, settings: TrainConfig, plus_ratio: float = 1.0) -> None:
        """Make the optimizer; its state starts with the first update."""
        self._plus_ratio = plus_ratio

        def adam() -> optim.AdamW:
            # torch's Adam corrects the bias of its first steps; mlx's does so only on request.
            return optim.AdamW(
                learning_rate=settings.learning_rate,
                betas=[BETA1, settings.beta2],
                weight_decay=settings.weight_decay,
                bias_correction=True,
            )

        self._rest, self._b = adam(), adam()
        self._optimizer = optim.MultiOptimizer([self._b, self._rest], [_is_b])

    def update(self, model: nn.Module, gradients: Gradients, rate: float) -> None:
        """Take one step with this learning rate, and compute it."""
        self._rest.learning_rate = rate
        self._b.learning_rate = rate * self._plus_ratio
        self._optimizer.update(model, gradients)
        mx.eval(model.trainable_parameters(), self._optimizer.state)

    def state(self) -> dict[str, mx.array]:
        """Return the state as flat, named tensors."""
        return dict(tree_flatten(self._optimizer.state))

    def restore(self, state: dict[str, mx.array]) -> None:
        """Continue from a state that `state` returned for the same adapter."""
        tree: Any = tree_unflatten(list(state.items()))
        self._optimizer.state = tree


def _is_b(name: str, _weight: mx.array) -> bool:
    return name.endswith("lora_b")
