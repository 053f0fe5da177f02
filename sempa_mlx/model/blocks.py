"""Reading and changing what flows through a model's blocks, without touching the model.

mlx-lm's models return final states only. Here a shallow twin of the model is made whose list of
blocks holds stand-ins: weights and layers are the model's own, its attributes stay as they are, and
other threads notice nothing. Gradients flow through, and adapters work as they are dialled.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.model.head import text_model

Edit = Callable[[mx.array], mx.array]


@dataclass(frozen=True, slots=True)
class Taps:
    """Changes by block, counted from 0; each maps an array to one of the same shape and dtype.

    `before` gets the states that enter the block, (rows, length, dim). `heads` gets the outputs of
    its attention heads side by side, (rows, length, heads * head dim), as they enter `o_proj`.
    """

    before: Mapping[int, Edit] = field(default_factory=dict)
    heads: Mapping[int, Edit] = field(default_factory=dict)


class ReachedError(Exception):
    """Everything that was asked for has been read; later blocks need not run."""


class TappedModel:
    """A shallow twin of a model that runs under taps and keeps chosen hidden states.

    States are counted as Hugging Face does in `hidden_states`: 0 is what enters the first block, k
    what leaves block k without the final norm, and the number of blocks stands for the final
    states, after the norm.
    """

    def __init__(self, model: nn.Module, layers: Collection[int], taps: Taps) -> None:
        """Prepare one forward pass that reads the states `layers`.

        Raises:
            ModelError: the model's blocks are not made for this.
        """
        inner = text_model(model)
        name, blocks = block_list(inner)
        self.depth = len(blocks)
        self._wanted = frozenset(layers)
        self._last = max(layers)
        self._kept: dict[int, mx.array] = {}
        backbone = copy(inner.model)
        stand_ins = [_StandIn(self, index, block, taps) for index, block in enumerate(blocks)]
        setattr(backbone, name, stand_ins)
        self.model = copy(inner)
        self.model.model = backbone

    def read(self, run: Callable[[nn.Module], mx.array]) -> dict[int, mx.array]:
        """Run the twin, which `run` gets and returns the final states of; return states by index.

        Raises:
            ModelError: the model does not hand states from block to block.
        """
        with suppress(ReachedError):
            self._kept[self.depth] = run(self.model)
        missing = self._wanted - self._kept.keys()
        if missing:
            raise misfit("it does not run its blocks from its list of blocks")
        return {index: self._kept[index] for index in self._wanted}

    def entering(self, index: int, states: mx.array) -> None:
        """Take note of the states that enter block `index`."""
        if not isinstance(states, mx.array) or states.ndim != 3:
            raise misfit("its blocks take more than one state a token")
        if index in self._wanted:
            self._kept[index] = states
        if index == self._last:
            raise ReachedError


class _StandIn:
    """Stands in for a block: keeps and changes what enters it."""

    def __init__(self, tapped: TappedModel, index: int, block: nn.Module, taps: Taps) -> None:
        self._tapped, self._index = tapped, index
        self._before = taps.before.get(index)
        heads = taps.heads.get(index)
        self._block = block if heads is None else _with_heads(block, heads)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the block has
        return getattr(self._block, name)

    def __call__(self, states: mx.array, *args: Any, **kwargs: Any) -> mx.array:  # noqa: ANN401
        self._tapped.entering(self._index, states)
        if self._before is not None:
            states = self._before(states)
        output = self._block(states, *args, **kwargs)
        if not isinstance(output, mx.array):
            raise misfit("its blocks return more than hidden states")
        return output


class _EditedInput:
    """Stands in for a linear layer, and changes what enters it."""

    def __init__(self, layer: nn.Module, edit: Edit) -> None:
        self._layer, self._edit = layer, edit

    def __call__(self, x: mx.array) -> mx.array:
        return cast("mx.array", self._layer(self._edit(x)))


def _with_heads(block: nn.Module, edit: Edit) -> nn.Module:
    """Return a shallow twin of a block whose head outputs are changed."""
    twin, attention = copy(block), copy(block.self_attn)
    attention.o_proj = _EditedInput(block.self_attn.o_proj, edit)
    twin.self_attn = attention
    return twin


def require_attention(model: nn.Module) -> None:
    """Make sure that every block is attention whose head outputs can be seen.

    Raises:
        ModelError: some blocks are something else, such as convolutions.
    """
    _, blocks = block_list(text_model(model))
    others = [
        str(index)
        for index, block in enumerate(blocks)
        if not ("self_attn" in block and "o_proj" in block.self_attn)
    ]
    if others:
        raise ModelError(
            Problem(
                "methods that change attention do not fit this model",
                evidence=f"no self-attention with an `o_proj` in blocks {', '.join(others)}",
                fix="use a method of prompts alone, such as prompteol",
            )
        )


def block_list(inner: nn.Module) -> tuple[str, list[nn.Module]]:
    """Find the attribute of a text model's backbone that holds its blocks, and the blocks.

    Raises:
        ModelError: there is none.
    """
    found = find_blocks(inner.model, inner.layers)
    if found is None:
        raise misfit("its blocks are not one list of its backbone")
    return found


def find_blocks(backbone: nn.Module, blocks: list[nn.Module]) -> tuple[str, list[nn.Module]] | None:
    """Find the attribute of the backbone that holds exactly these blocks."""
    for name, value in backbone.items():
        if isinstance(value, list) and list(map(id, value)) == list(map(id, blocks)):
            return name, value
    return None


def misfit(evidence: str) -> ModelError:
    """Return the error for a model whose blocks cannot be read or changed."""
    return ModelError(
        Problem(
            "the blocks of this model cannot be read one by one",
            evidence=evidence,
            fix="read its last layer, by a method of prompts alone such as prompteol",
        )
    )
