"""One model out of base and adapter, for programs that know no adapters; proved before it is kept.

Fusing into quantised weights rounds small updates away, and DPO's are small. So the weights are
unpacked first, packed again only on request, and the result is run beside base + adapter on real
text: what it predicts may differ by a small part of what the adapter does.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.utils import save_config, save_model

from sempa_mlx.data.preferences import read_preferences
from sempa_mlx.data.sources import training_source
from sempa_mlx.encoder.settings import read_settings
from sempa_mlx.errors import ModelError, Problem, UsageError
from sempa_mlx.files import refuse_filled, replacing_folder
from sempa_mlx.model.adapter_config import read_adapter_config
from sempa_mlx.model.adapter_layers import AdapterLayer, DialledDora
from sempa_mlx.model.gguf import model_config, read_gguf
from sempa_mlx.model.load import LoadedModel, load_model
from sempa_mlx.model.lora import dialled, load_adapter
from sempa_mlx.model.prompts import tokenize_prompts

MAX_ERROR = 0.1  # of the adapter's effect
FLOOR = 1e-3  # nats a token: rounding, whatever the adapter does
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
NUM_TEXTS = 32


@dataclass(frozen=True, slots=True)
class Packing:
    """How weights are written: a precision, or bits and group size of a quantisation."""

    dtype: str = "float32"
    bits: int | None = None
    group_size: int = 64


@dataclass(frozen=True, slots=True)
class Fusion:
    """What was written, and how it was proved.

    `error` is the mean KL(base + adapter || fused) in nats a token over `num_tokens` of real text,
    `effect` the mean KL(base + adapter || base).
    """

    folder: Path
    error: float
    effect: float
    num_tokens: int


def export_fused(
    adapter: Path,
    out: Path,
    *,
    scale: float | None = None,
    packing: Packing | None = None,
    max_error: float = MAX_ERROR,
) -> Fusion:
    """Write base + adapter as one model folder that mlx-lm and transformers open.

    Args:
        adapter: run folder or another adapter folder.
        out: folder to write, whole or not at all.
        scale: the dial; by default the one that the folder keeps.
        packing: precision of the weights, or their quantisation; float32 by default.
        max_error: the largest error, as a share of the adapter's effect.

    Raises:
        ModelError: base or adapter cannot be read, or the fused model errs by more; with figures.
        UsageError: `out` exists and is not an empty folder, or there is no such packing.
        ResourceError: it cannot be written.
    """
    packing = packing or Packing()
    _check(packing)
    refuse_filled(out)
    dial = read_settings(adapter).adapter_scale if scale is None else scale
    recorded = read_adapter_config(adapter)
    revision = (recorded.get("sempa") or {}).get("base_revision")
    # Sums in float32: a small update added to bfloat16 weights would be rounded away.
    loaded = load_model(str(recorded["model"]), revision=revision, dtype="float32")
    load_adapter(loaded, adapter)
    rows = _sample_rows(loaded)
    adapted, base = _log_probs(loaded.model, rows, dial), _log_probs(loaded.model, rows, 0.0)
    config = _packed(loaded, fuse(loaded, dial), packing)
    found = _log_probs(loaded.model, rows, 1.0)
    error, effect = _mean_kl(adapted, found), _mean_kl(adapted, base)
    if error > max_error * effect + FLOOR:
        raise ModelError(
            Problem(
                f"the fused model errs by {error:.2g} nats a token (KL to base + adapter)",
                str(adapter),
                f"the adapter moves predictions by {effect:.2g}; at most {max_error:.0%} of that, "
                f"and {FLOOR:g}, may be lost",
                "export without --q-bits, with more bits, or raise --max-error",
            ),
            state="nothing was written",
        )
    with replacing_folder(out) as folder:
        write_model(folder, loaded, config)
    return Fusion(out, error, effect, sum(map(len, rows)))


def fuse(loaded: LoadedModel, dial: float) -> dict[str, Any]:
    """Replace adapter layers by plain ones with the adapted weights; return the model's config."""
    config = source_config(loaded)
    adapters = [
        (path, layer)
        for path, layer in loaded.model.named_modules()
        if isinstance(layer, AdapterLayer)
    ]
    plain = [(path, _plain_linear(layer, dial)) for path, layer in adapters]
    loaded.model.update_modules(tree_unflatten(plain))
    mx.eval(loaded.model.parameters())
    return config


def _plain_linear(layer: AdapterLayer, dial: float) -> nn.Module:
    """Return W + dial (W' - W), W' being the adapted weights: the dial's own definition."""
    base, full = layer.linear, layer.fuse(dequantize=True)
    linear = nn.Linear(base.weight.shape[1], base.weight.shape[0], bias="bias" in base)
    linear.weight = base.weight + dial * (full.weight - base.weight)
    if "bias" in base:
        linear.bias = base.bias
    if isinstance(layer, DialledDora) and dial == 1:
        linear.weight = full.weight
    return linear


def source_config(loaded: LoadedModel) -> dict[str, Any]:
    """Return the config of a model's files, without what it says of packed weights."""
    path = loaded.location.path
    if path.is_file():
        config = model_config(read_gguf(path))
    else:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return {
        name: value
        for name, value in config.items()
        if name not in ("quantization", "quantization_config")
    }


def write_model(folder: Path, loaded: LoadedModel, config: dict[str, Any]) -> None:
    """Write weights, config and tokenizer into a folder that is there."""
    save_model(folder, loaded.model)
    save_config(dict(config), folder / "config.json")
    loaded.tokenizer.save_pretrained(folder)
    source = loaded.location.path / "generation_config.json"
    if source.is_file():
        (folder / source.name).write_bytes(source.read_bytes())


def _check(packing: Packing) -> None:
    if packing.dtype not in DTYPES:
        fix = f"one of {', '.join(DTYPES)}"
        raise UsageError(Problem(f"no precision `{packing.dtype}`", fix=fix))
    if packing.bits is not None and packing.bits not in (2, 3, 4, 5, 6, 8):
        raise UsageError(Problem(f"no quantisation to {packing.bits} bits", fix="2 to 6, or 8"))
    if packing.group_size not in (32, 64, 128):
        what = f"no groups of {packing.group_size} weights"
        raise UsageError(Problem(what, fix="--q-group-size 32, 64 or 128"))


def _packed(loaded: LoadedModel, config: dict[str, Any], packing: Packing) -> dict[str, Any]:
    """Give the model's weights their precision; return the config that says so."""
    model, group = loaded.model, packing.group_size
    model.set_dtype(DTYPES[packing.dtype])
    config = config | {"torch_dtype": packing.dtype, "dtype": packing.dtype}
    if packing.bits is None:
        return config
    nn.quantize(
        model,
        group,
        packing.bits,
        class_predicate=lambda _, layer: (
            hasattr(layer, "to_quantized") and layer.weight.shape[-1] % group == 0
        ),
    )
    stored = {"group_size": group, "bits": packing.bits, "mode": "affine"}
    return config | {"quantization": stored, "quantization_config": stored}


def _sample_rows(loaded: LoadedModel) -> list[list[int]]:
    """Return tokens of packaged sentences, each with its entailed one."""
    records = read_preferences(training_source("demo").path, limit=NUM_TEXTS).records
    texts = [f"{record.anchor} {record.candidates[0]}" for record in records]
    return tokenize_prompts(texts, loaded.tokenizer)


def _log_probs(model: nn.Module, rows: Sequence[Sequence[int]], dial: float) -> list[mx.array]:
    """Return the log-probabilities after every token of each row, (tokens, vocabulary) float32."""
    found = []
    with dialled(model, dial):
        for row in rows:
            logits = model(mx.array([list(row)]))[0].astype(mx.float32)
            found.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
            mx.eval(found[-1])
    return found


def _mean_kl(wanted: Sequence[mx.array], found: Sequence[mx.array]) -> float:
    """Return the mean KL(wanted || found) over all tokens, in nats."""
    sums = [
        np.array(mx.sum(mx.exp(one) * (one - other))).item()
        for one, other in zip(wanted, found, strict=True)
    ]
    return max(float(sum(sums)) / sum(len(each) for each in wanted), 0.0)
