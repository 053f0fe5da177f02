"""Linear layers with a low-rank adapter whose strength a dial sets, thread by thread.

They are mlx-lm's own layers (its `fuse` and its files go on working) with another `__call__`: the
layer asks its dial how strong it is while the graph is built. Nothing is copied or written to, so
one set of weights serves the base in one thread and the encoder in another at the same time.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from sempa_mlx.errors import Problem


class Dial:
    """The strength of one adapter as the current thread (or asyncio task) sees it; 1 at first."""

    @property
    def factor(self) -> float:
        """What the adapter's effect is multiplied with: 0 is the base, 1 the full adapter."""
        return _FACTORS.get().get(self, 1.0)

    @contextmanager
    def turned(self, factor: float) -> Iterator[None]:
        """Multiply the factor by `factor` inside the block."""
        before = _FACTORS.get()
        token = _FACTORS.set({**before, self: before.get(self, 1.0) * factor})
        try:
            yield
        finally:
            _FACTORS.reset(token)


_FACTORS: ContextVar[Mapping[Dial, float]] = ContextVar("factors", default=MappingProxyType({}))


class DialledLora(LoRALinear):  # type: ignore[misc]
    """mlx-lm's LoRA layer; the dial multiplies its scale."""

    def __init__(
        self, base: nn.Module, dial: Dial, *, rank: int, scale: float, dropout: float
    ) -> None:
        """Wrap a plain or quantised linear layer; B is zero, so its output stays as it is."""
        inputs, outputs = linear_dims(base)
        super().__init__(inputs, outputs, r=rank, dropout=dropout, scale=scale)
        self.linear = base
        self.dial = dial

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., inputs) to (..., outputs); at factor 0 this is the base layer, bit for bit."""
        factor = self.dial.factor
        output: mx.array = self.linear(x)
        if factor == 0.0:
            return output
        strength = self.scale * factor
        narrow = self.dropout(x) @ self.lora_a
        update: mx.array
        if is_power_of_two(strength):  # exact wherever it is done, and least work here
            update = (strength * narrow) @ self.lora_b
        else:
            update = strength * (narrow @ self.lora_b)
        return output + update.astype(x.dtype)


class DialledDora(DoRALinear):  # type: ignore[misc]
    """mlx-lm's DoRA layer; the dial goes straight from the base's weights to the adapted ones.

    Dialling the scale instead would leave the trained magnitudes on the base, so at factor 0 it
    would not be the base.
    """

    def __init__(
        self, base: nn.Module, dial: Dial, *, rank: int, scale: float, dropout: float
    ) -> None:
        """Wrap a plain or quantised linear layer; its output stays as it is, up to rounding."""
        inputs, outputs = linear_dims(base)
        super().__init__(inputs, outputs, r=rank, dropout=dropout, scale=scale)
        self.set_linear(base)
        self.dial = dial

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., inputs) to (..., outputs): (1 - factor) base(x) + factor dora(x)."""
        factor = self.dial.factor
        if factor == 1.0:
            full: mx.array = super().__call__(x)
            return full
        output: mx.array = self.linear(x)
        return output if factor == 0.0 else (1.0 - factor) * output + factor * super().__call__(x)


def is_power_of_two(number: float) -> bool:
    """Tell whether multiplying by a number only moves the exponent, and is exact."""
    return abs(math.frexp(number)[0]) == 0.5


AdapterLayer = DialledLora | DialledDora


def is_adaptable(module: nn.Module) -> bool:
    """Tell whether a module is a plain or quantised linear layer.

    Some models of mlx-lm have linear layers with several outputs and a LoRA of their own
    (`to_lora`); those do not count.
    """
    return isinstance(module, nn.Linear | nn.QuantizedLinear) and not hasattr(module, "to_lora")


def can_be_adapted(module: nn.Module) -> bool:
    """Tell whether a module is a linear layer, with or without an adapter around it."""
    return is_adaptable(module) or "lora_a" in module


def linear_dims(linear: nn.Module) -> tuple[int, int]:
    """Return (inputs, outputs) of a plain or quantised linear layer."""
    outputs, inputs = linear.weight.shape
    if isinstance(linear, nn.QuantizedLinear):
        inputs = inputs * 32 // linear.bits
    return inputs, outputs


def adapter_shapes(linear: nn.Module, rank: int, *, dora: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that an adapter of this linear layer has, by name."""
    inputs, outputs = linear_dims(linear)
    shapes: dict[str, tuple[int, ...]] = {"lora_a": (inputs, rank), "lora_b": (rank, outputs)}
    return shapes | {"m": (outputs,)} if dora else shapes


def last_blocks(model: nn.Module, layers: int) -> list[nn.Module]:
    """Return the last `layers` blocks; all if `layers` is -1 or 0, as in mlx-lm."""
    blocks: list[nn.Module] = model.layers[-max(layers, 0) :]
    return blocks


def choose_linears(
    model: nn.Module, layers: int, keys: Collection[str] | None
) -> dict[str, nn.Module]:
    """Return by path the linear layers that mlx-lm would adapt under these settings.

    `keys` are names inside a block (of the last `layers`) or paths in the model; None means every
    linear layer of those blocks.
    """
    modules = model.named_modules()
    paths = {id(module): path for path, module in modules}
    chosen = [
        module
        for block in last_blocks(model, layers)
        for key, module in block.named_modules()
        if keys is None or key in keys
    ]
    chosen += [module for path, module in modules if path in (keys or ())]
    return {paths[id(module)]: module for module in chosen if is_adaptable(module)}


def covering_keys(model: nn.Module, layers: int, adapted: Collection[str]) -> list[str]:
    """Return the `keys` that choose the layers of these paths and no others, sorted.

    Args:
        model: with or without its adapter.
        layers: how many of the last blocks hold them, as `num_layers` says.
        adapted: paths of linear layers in the model.

    Returns:
        Names inside a block if those do, as in mlx-lm's own files, else the paths.
    """
    inside = [
        [(key, module) for key, module in block.named_modules() if can_be_adapted(module)]
        for block in last_blocks(model, layers)
    ]
    wanted = {id(module) for path, module in model.named_modules() if path in adapted}
    keys = {key for pairs in inside for key, module in pairs if id(module) in wanted}
    chosen = {id(module) for pairs in inside for key, module in pairs if key in keys}
    return sorted(keys) if chosen == wanted else sorted(adapted)


def adapt(
    linears: Mapping[str, nn.Module], *, dora: bool, rank: int, scale: float, dropout: float
) -> dict[str, AdapterLayer]:
    """Wrap linear layers in fresh adapter layers under one new dial; no model is touched.

    A is drawn from mlx's global random state, layer by layer in the order of `linears`.
    """
    kind: type[AdapterLayer] = DialledDora if dora else DialledLora
    dial = Dial()
    adapters = {
        path: kind(linear, dial, rank=rank, scale=scale, dropout=dropout)
        for path, linear in linears.items()
    }
    for adapter in adapters.values():
        adapter.train(adapter.linear.training)
    return adapters


def dora_faults(adapters: Mapping[str, AdapterLayer]) -> list[Problem]:
    """Say why DoRA cannot be had on these layers; LoRA layers have no such faults."""
    doras = {path: layer for path, layer in adapters.items() if isinstance(layer, DialledDora)}
    packings = {getattr(layer.linear, "bits", 32) for layer in doras.values()}
    faults = [
        Problem(
            f"lora.kind: no DoRA on {bits}-bit weights: mlx-lm could not load it",
            evidence="its DoRA layer counts on a whole number of weights in 32 bits",
            fix="lora.kind lora or rslora, or a base of 4 or 8 bits",
        )
        for bits in sorted(packings)
        if 32 % bits
    ]
    return faults + [
        Problem("lora.kind: no DoRA here: a row of zeros has no direction", place=path)
        for path, layer in doras.items()
        if mx.any(layer.m == 0).item()
    ]


def put_on(model: nn.Module, adapters: Mapping[str, AdapterLayer]) -> None:
    """Put adapter layers into the model, each in the place of the layer it wraps."""
    model.update_modules(tree_unflatten(list(adapters.items())))
