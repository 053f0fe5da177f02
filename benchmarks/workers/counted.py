"""Counts the tokens that a model of mlx-lm runs, padding included."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Tokens:
    """How many went through the backbone."""

    count: int = 0


@contextmanager
def counting(backbone: type) -> Iterator[Tokens]:
    """Count inside the block; `backbone` is the class of a model's `model`."""
    tokens, original = Tokens(), backbone.__call__

    def counted(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        tokens.count += inputs.size
        return original(self, inputs, *args, **kwargs)

    backbone.__call__ = counted  # type: ignore[method-assign]
    try:
        yield tokens
    finally:
        backbone.__call__ = original  # type: ignore[method-assign]
