"""Gradients to the weights that are trained."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import mlx.nn as nn

from sempa_mlx.model.cpu_kernels import warm_up


def value_and_grad(model: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what `mlx.nn.value_and_grad` does; compiled functions are traced before it runs."""
    differentiated = nn.value_and_grad(model, function)

    @wraps(function)
    def found(*arguments: Any) -> Any:  # noqa: ANN401 - whatever `function` takes and returns
        warm_up()
        return differentiated(*arguments)

    return found
