"""Gradients to the weights that are trained."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import mlx.nn as nn

from sempa_mlx.model.fused import differentiating


def value_and_grad(model: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what `mlx.nn.value_and_grad` does, with fused functions inside that stay fused."""
    differentiated = nn.value_and_grad(model, function)

    @wraps(function)
    def found(*arguments: Any) -> Any:  # noqa: ANN401 - whatever `function` takes and returns
        with differentiating():
            return differentiated(*arguments)

    return found
