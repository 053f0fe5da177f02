"""Base and adapter as one model: its weights written as a folder, read back and verified.

The sums are made in float32, at any strength of the adapter. Quantising them again can lose the
adapter, so it is done on request only; whatever is written is opened and compared on real text.
"""

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.utils import quantize_model, save_model

from sempa_mlx import runtime
from sempa_mlx.errors import ModelError, Problem, UsageError
from sempa_mlx.export.adapted import NOTHING, open_adapted
from sempa_mlx.export.logit_check import (
    LogitCheck,
    compare,
    expected_logits,
    packaged_texts,
    percent,
)
from sempa_mlx.export.model_files import CONFIG_FILE, base_config, stored_dtype, write_tokenizer
from sempa_mlx.files import new_folder, refuse_filled
from sempa_mlx.model.adapter_layers import AdapterLayer, DialledDora
from sempa_mlx.model.load import LoadedModel, load_model

BITS, GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)
DEFAULT_BITS, DEFAULT_GROUP_SIZE = 4, 64
# Bounds of the logits' error as shares of what the adapter changes: in float32, in 16 bits, and
# quantised, when the base comes out changed as well.
EXACT_BOUND, ROUNDED_BOUND, QUANTISED_BOUND = 0.001, 0.1, 0.5


@dataclass(frozen=True, slots=True)
class FusePlan:
    """How a fused model is stored.

    Attributes:
        dtype: `float32`, `bfloat16`, `float16`, or `auto`: that of the base's files.
        bits: of quantised weights; None with no `group_size` either: not quantised.
        group_size: quantised weights that share a scale.
        max_error: bound of the logits' error as a share of what the adapter changes; None: 0.001
            for float32, 0.1 for 16 bits, 0.5 for quantised weights.
    """

    dtype: str = "auto"
    bits: int | None = None
    group_size: int | None = None
    max_error: float | None = None

    @property
    def is_quantised(self) -> bool:
        """Tell whether weights are to be quantised."""
        return self.bits is not None or self.group_size is not None

    def faults(self) -> list[Problem]:
        """List values that cannot be."""
        found = []
        if self.dtype not in ("auto", *runtime.DTYPES):
            known = f"auto, {', '.join(runtime.DTYPES)}"
            found.append(Problem(f"--dtype: no precision `{self.dtype}`", fix=known))
        for option, value, known_values in (
            ("--q-bits", self.bits, BITS),
            ("--q-group-size", self.group_size, GROUP_SIZES),
        ):
            if value is not None and value not in known_values:
                known = ", ".join(map(str, known_values))
                found.append(Problem(f"{option}: {value} is not possible", fix=f"one of {known}"))
        if self.max_error is not None and not self.max_error > 0:
            found.append(Problem(f"--max-error: {self.max_error:g} is not above 0"))
        return found

    def bound(self, dtype: mx.Dtype) -> float:
        """Return the largest error that is let through."""
        if self.max_error is not None:
            return self.max_error
        if self.is_quantised:
            return QUANTISED_BOUND
        return EXACT_BOUND if dtype == mx.float32 else ROUNDED_BOUND


@dataclass(frozen=True, slots=True)
class FusedExport:
    """What was written.

    Attributes:
        folder: the model.
        base_name: Hub id of the base, if it has one.
        dtype: precision of its weights, or of their scales if they are quantised.
        scale: the dial that is in the weights.
        check: how far it is from base and adapter.
        bound: of `check.share`.
    """

    folder: Path
    base_name: str | None
    dtype: str
    scale: float
    check: LogitCheck
    bound: float


def export_fused(
    adapter: Path,
    out: Path,
    plan: FusePlan,
    *,
    model: str | None = None,
    scale: float | None = None,
) -> FusedExport:
    """Write base and adapter as one model folder, for mlx-lm and transformers.

    Args:
        adapter: run folder.
        out: new folder.
        plan: how to store the weights, and what error is let through.
        model: where the base lies now; by default where the run folder says.
        scale: the dial; by default the run folder's own.

    Raises:
        ModelError: adapter or base cannot be read or do not belong together; or the written model
            is further from both together than the plan's bound.
        UsageError: `out` is taken, or the plan is impossible.
        ResourceError: it cannot be written.
    """
    refuse_filled(out)
    if faults := plan.faults():
        raise UsageError(faults, state=NOTHING)
    opened = open_adapted(adapter, model=model, dtype="float32")
    dial, path, base_name = opened.scale(scale), opened.loaded.location.path, opened.public_name
    expected = expected_logits(opened.loaded, dial, packaged_texts())
    fuse_layers(opened.loaded.model, dial)
    dtype = stored_dtype(path) if plan.dtype == "auto" else runtime.DTYPES[plan.dtype]
    opened.loaded.model.set_dtype(dtype)
    config = fused_config(opened.loaded, runtime.dtype_name(dtype))
    if plan.is_quantised:
        config = _quantise(opened.loaded.model, config, plan)
    with new_folder(out) as stage:
        write_weights(opened.loaded, config, stage)
        write_tokenizer(opened.loaded, stage)
        del opened  # one model in memory at a time
        check = compare(load_model(str(stage), dtype="float32"), expected)
        bound = plan.bound(dtype)
        if not check.share <= bound:
            raise ModelError(_too_far(check, bound, plan), state=NOTHING)
    return FusedExport(out, base_name, runtime.dtype_name(dtype), dial, check, bound)


def fuse_layers(model: nn.Module, factor: float) -> None:
    """Put plain linear layers in the place of adapter layers, in float32.

    Args:
        model: with an adapter on weights that are not quantised.
        factor: the dial that is built in; 0 gives the base's weights back, bit for bit.
    """
    adapters = [(p, m) for p, m in model.named_modules() if isinstance(m, AdapterLayer)]
    for path, layer in adapters:
        outputs, inputs = layer.linear.weight.shape
        fused = nn.Linear(inputs, outputs, bias="bias" in layer.linear)
        fused.weight = _fused_weight(layer, factor)
        if "bias" in layer.linear:
            fused.bias = layer.linear.bias
        mx.eval(fused.parameters())
        model.update_modules(tree_unflatten([(path, fused)]))


def _fused_weight(layer: AdapterLayer, factor: float) -> mx.array:
    """Return the (outputs, inputs) weight that does what the layer does at this dial."""
    weight: mx.array = layer.linear.weight.astype(mx.float32)
    update: mx.array = (layer.lora_a.astype(mx.float32) @ layer.lora_b.astype(mx.float32)).T
    if factor != 0.0 and isinstance(layer, DialledDora):
        adapted = weight + layer.scale * update
        adapted = (layer.m / mx.linalg.norm(adapted, axis=1))[:, None] * adapted
        weight = (1.0 - factor) * weight + factor * adapted
    elif factor != 0.0:
        weight = weight + layer.scale * factor * update
    return weight


def fused_config(loaded: LoadedModel, dtype: str) -> dict[str, Any]:
    """Return the base's config with the precision and the tie of what is written.

    Programs differ in whether embeddings are tied when the config does not say.
    """
    config = base_config(loaded.location.path)
    config |= {name: dtype for name in ("dtype", "torch_dtype") if name in config}
    if "dtype" not in config:
        config["torch_dtype"] = dtype
    tied = getattr(getattr(loaded.model, "args", None), "tie_word_embeddings", None)
    if tied is not None and "text_config" not in config:
        config["tie_word_embeddings"] = bool(tied)
    return config


def _quantise(model: nn.Module, config: dict[str, Any], plan: FusePlan) -> dict[str, Any]:
    with redirect_stdout(io.StringIO()):  # mlx-lm prints the bits of a weight
        _, quantised = quantize_model(
            model,
            config,
            plan.group_size or DEFAULT_GROUP_SIZE,
            plan.bits or DEFAULT_BITS,
        )
    return dict(quantised)


def write_weights(loaded: LoadedModel, config: dict[str, Any], folder: Path) -> None:
    """Write a model's weights and config into a folder that is there."""
    save_model(folder, loaded.model)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")


def _too_far(check: LogitCheck, bound: float, plan: FusePlan) -> Problem:
    share = f"{percent(bound)} of what the adapter changes"
    what = f"the fused model is not base and adapter: its logits are off by more than {share}"
    ways = "leave --q-bits and --q-group-size out, or take more bits"
    fix = ways if plan.is_quantised else "take --dtype float32"
    accept = f"accept it with --max-error {check.share * 1.1:.2g}"
    return Problem(what, evidence=f"{check}", fix=f"{fix}; or {accept}")
