"""Gradient checkpointing: blocks are computed again in the backward pass instead of kept.

`mx.checkpoint` gives no gradient to arrays that a function merely reads, and mlx-lm's own
`grad_checkpoint` lets blocks read the keys and values of earlier tokens that way: with shared
prompts its gradients are wrong without any sign. Here hidden states, keys, values and weights are
all arguments and results, and what cannot be is refused.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.model.blocks import find_blocks
from sempa_mlx.model.forest import ForestCache
from sempa_mlx.model.forward import BranchCache, KeysValues
from sempa_mlx.model.gradients import value_and_grad
from sempa_mlx.model.head import text_model

# Largest relative difference of gradients that another order of sums can explain.
TOLERANCE = {mx.float32: 1e-3, mx.float16: 5e-2, mx.bfloat16: 2e-1}


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Let the model keep only what goes from block to block, as long as the context is open.

    Gradients may be taken after it is closed. Without gradients nothing changes.

    Raises:
        UsageError: the model's blocks do not fit, or draw random numbers.
    """
    backbone = text_model(model).model
    found = find_blocks(backbone, model.layers)
    if found is None:
        raise _misfit("its blocks are not one list of its backbone")
    name, blocks = found
    stand_ins = [_CheckpointedBlock(block) for block in blocks]
    setattr(backbone, name, stand_ins)
    try:
        yield
    finally:
        setattr(backbone, name, blocks)
    if not all(stand_in.has_run for stand_in in stand_ins):
        raise _misfit("it does not run its blocks from its list of blocks")


def saving_memory(model: nn.Module, run: Callable[[Any], mx.array]) -> Callable[[Any], mx.array]:
    """Return what runs passes of a model as `run` does, under `checkpointed`."""

    def run_saving(rows: Any) -> mx.array:  # noqa: ANN401 - whatever `run` takes
        with checkpointed(model):
            return run(rows)

    return run_saving


def check_gradients(
    model: nn.Module, usual: Callable[[], mx.array], saving: Callable[[], mx.array], dtype: mx.Dtype
) -> None:
    """Demand the same gradients of two losses of the model, without and with `checkpointed`.

    This finds dropout, and blocks that share arrays in some way unknown here. A weight's gradient
    is measured against its own size or that of a typical one, whichever is larger.

    Raises:
        UsageError: they differ by more than the rounding of `dtype`, or the blocks do not fit.
    """
    found, expected = _gradients(model, saving), _gradients(model, usual)
    sizes = {name: _norm(gradient) for name, gradient in expected.items()}
    typical = math.sqrt(sum(size**2 for size in sizes.values()) / max(1, len(sizes)))
    for name, size in sizes.items():
        difference, allowed = _norm(found[name] - expected[name]), max(size, typical)
        if not difference <= TOLERANCE[dtype] * allowed:  # so that NaN is caught as well
            raise _misfit(f"the gradient of {name} would be off by {difference:.2g} of {size:.2g}")


def _gradients(model: nn.Module, loss: Callable[[], mx.array]) -> dict[str, mx.array]:
    """Return the gradients by weight, as in a training step."""
    was_training = model.training
    model.train()
    try:
        gradients = value_and_grad(model, lambda _: loss())(model)[1]
    finally:
        model.train(was_training)
    mx.eval(gradients)
    return dict(tree_flatten(gradients))


def _norm(gradient: mx.array) -> float:
    return float(mx.linalg.norm(gradient.astype(mx.float32)))


def _misfit(evidence: str) -> UsageError:
    return UsageError(
        Problem(
            "this model cannot compute its blocks again in the backward pass",
            evidence=evidence,
            fix="set train.grad_checkpoint: false",
        )
    )


class _CheckpointedBlock:
    """Stands in for a block, and has it run under `mx.checkpoint`."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self.has_run = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the block has
        return getattr(self._block, name)

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:  # noqa: ANN401 - any block's call
        self.has_run = True
        given = (*args, *kwargs.values())
        cache = next((part for part in given if isinstance(part, BranchCache)), None)
        rest, arrays = _take_arrays_out(args, kwargs, cache)
        # What `run` holds lives as long as the graph: no arrays, and not `cache`, which gets some.
        empty, past = (None, ()) if cache is None else (cache.after(()), cache.past)

        def run(
            weights: dict[str, Any], past: tuple[KeysValues, ...], arrays: list[mx.array]
        ) -> list[mx.array]:
            own = None if empty is None else empty.after(past)
            args, kwargs = _put_arrays_back(rest, arrays, own)
            hidden = _run_block(self._block, weights, args, kwargs)
            return [hidden, *(own.new if own and own.keeps and own.new else ())]

        hidden, *new = mx.checkpoint(run)(self._block.trainable_parameters(), past, arrays)
        if cache is not None and new:
            cache.new = (new[0], new[1])
        return hidden


def _run_block(
    block: nn.Module, weights: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> mx.array:
    """Run a block on given weights, and give it its own back."""
    own_weights = block.trainable_parameters()
    random_state = _random_state()
    block.update(weights)
    try:
        hidden = block(*args, **kwargs)
    finally:
        block.update(own_weights)  # or it would keep arrays of a trace
    if _random_state() is not random_state:
        raise _misfit("it draws random numbers, which would be others the second time (dropout?)")
    if not isinstance(hidden, mx.array):
        raise _misfit("its blocks return more than hidden states")
    return hidden


def _random_state() -> object:
    return cast("Sequence[mx.array]", mx.random.state)[0]  # another object after every draw


class _Place(int):
    """The index of an array that was taken out of the arguments of a call."""


class _CachePlace:
    """Where the cache was in the arguments of a call."""


def _take_arrays_out(
    args: tuple[Any, ...], kwargs: dict[str, Any], cache: BranchCache | None
) -> tuple[list[Any], list[mx.array]]:
    """Part what may carry a gradient, all floating-point arrays, from the rest of a call."""
    arrays: list[mx.array] = []

    def take(part: Any) -> Any:  # noqa: ANN401 - any argument
        if isinstance(part, mx.array) and mx.issubdtype(part.dtype, mx.inexact):
            arrays.append(part)
            return _Place(len(arrays) - 1)
        if part is cache and cache is not None:
            return _CachePlace()
        # The cache of a forest holds places of tokens alone, which carry no gradient.
        if not isinstance(part, mx.array | mx.Dtype | ForestCache | str | int | float | None):
            raise _misfit(f"its blocks take an argument of type {type(part).__name__}")
        return part

    rest = tree_map(take, [args, kwargs], is_leaf=lambda part: isinstance(part, nn.Module))
    return rest, arrays


def _put_arrays_back(
    rest: list[Any], arrays: list[mx.array], cache: BranchCache | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Undo `_take_arrays_out`, with other arrays and another cache."""

    def put(part: Any) -> Any:  # noqa: ANN401 - any argument
        if isinstance(part, _Place):
            return arrays[part]
        return cache if isinstance(part, _CachePlace) else part

    args, kwargs = tree_map(put, rest)
    return args, kwargs
