"""Adapters to and from PEFT, the form in which LoRA of the torch world is shared.

The update is the same under both: y = W x + scale B A x. PEFT keeps A and B transposed and scale as
alpha / r (alpha / sqrt(r) with `use_rslora`); DoRA's m is its `lora_magnitude_vector`. Names are
those of mlx-lm's model, which follow transformers' for the families in `SAME_NAMES`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from sempa_mlx.encoder.settings import read_settings
from sempa_mlx.errors import ModelError, Problem, UsageError
from sempa_mlx.files import refuse_filled, write_folder_files
from sempa_mlx.model.adapter_config import WEIGHTS_FILE, read_adapter_config
from sempa_mlx.model.load import ALIASES, locate, model_type

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
SAME_NAMES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "olmo2")
PREFIX = "base_model.model."
LEAVES = {
    "lora_a": "lora_A.weight",
    "lora_b": "lora_B.weight",
    "m": "lora_magnitude_vector",
}
_BLOCK = re.compile(r"\.layers\.(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True)
class PeftExport:
    """What was written: the folder, the base it names, and what the user should know."""

    folder: Path
    base: str
    notes: tuple[str, ...]


def export_peft(
    adapter: Path, out: Path, *, base: str | None = None, scale: float | None = None
) -> PeftExport:
    """Write an adapter folder as one that `peft.PeftModel.from_pretrained(model, out)` loads.

    Args:
        adapter: a run folder or another adapter folder of mlx-lm's form.
        out: folder to write.
        base: what to name as the base; by default the adapter's own, an alias by its home on the
            Hub.
        scale: the dial; by default the one that the folder keeps. PEFT has none, so it goes into
            alpha.

    Raises:
        ModelError: the adapter cannot be read, or PEFT has no such adapter.
        UsageError: `out` exists and is not an empty folder.
        ResourceError: it cannot be written.
    """
    config = read_adapter_config(adapter)
    refuse_filled(out)
    dial = read_settings(adapter).adapter_scale if scale is None else scale
    if config["fine_tune_type"] == "dora" and dial != 1:
        what = f"DoRA at scale {dial:g} is no adapter of PEFT, whose DoRA has no dial"
        raise UsageError(Problem(what, str(adapter), fix="--adapter-scale 1"))
    if not dial:
        raise UsageError(Problem("at scale 0 the adapter is none", fix="give another scale"))
    weights = read_tensors(adapter / WEIGHTS_FILE)
    named = base or _home(str(config["model"]))
    tensors = {_peft_name(name): _turned(name, tensor) for name, tensor in weights.items()}
    written = json.dumps(_peft_config(config, weights, named, dial), indent=2) + "\n"
    write_folder_files(
        out,
        {
            PEFT_WEIGHTS: lambda path: mx.save_safetensors(
                str(path), tensors, metadata={"format": "pt"}
            ),
            PEFT_CONFIG: lambda path: path.write_text(written),
        },
    )
    return PeftExport(out, named, tuple(_notes(config, named)))


def read_tensors(path: Path) -> dict[str, mx.array]:
    """Read a safetensors file.

    Raises:
        ModelError: it is not there, truncated or something else.
    """
    try:
        found: Any = mx.load(str(path))
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise ModelError(Problem(f"unreadable ({error})", str(path))) from error
    return dict(found)


def _home(model: str) -> str:
    return ALIASES[model].hub_id if model in ALIASES else model


def _peft_name(name: str) -> str:
    layer, _, leaf = name.rpartition(".")
    if leaf not in LEAVES:
        raise ModelError(Problem(f"{name}: no tensor of a LoRA or DoRA adapter"))
    return f"{PREFIX}{layer}.{LEAVES[leaf]}"


def _turned(name: str, tensor: mx.array) -> mx.array:
    return mx.contiguous(tensor.T) if tensor.ndim == 2 else tensor


def _peft_config(
    config: Mapping[str, Any], weights: Mapping[str, mx.array], base: str, dial: float
) -> dict[str, Any]:
    """Return PEFT's settings."""
    parameters, kind = config["lora_parameters"], (config.get("sempa") or {}).get("kind")
    rank = parameters["rank"]
    root = rank**0.5 if kind == "rslora" else rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _plain(parameters["scale"] * dial * root),
        "lora_dropout": parameters.get("dropout", 0.0),
        "bias": "none",
        "use_rslora": kind == "rslora",
        "use_dora": config["fine_tune_type"] == "dora",
        "fan_in_fan_out": False,
        "inference_mode": True,
        **_targets({name.rpartition(".")[0] for name in weights}, config["num_layers"] <= 0),
    }


def _targets(layers: set[str], all_blocks: bool) -> dict[str, Any]:
    """Name the adapted layers as PEFT does: by the ends of their names, and by their blocks.

    If some lie outside the blocks (the head), all are named in full: PEFT's settings of blocks
    would leave those out.
    """
    found = {layer: _BLOCK.search(layer) for layer in layers}
    matches = [match for match in found.values() if match]
    if len(matches) < len(layers):
        return {"target_modules": sorted(layers)}
    ends = sorted({match[2].rpartition(".")[2] for match in matches})
    if all_blocks:
        return {"target_modules": ends}
    blocks = sorted({int(match[1]) for match in matches})
    return {"target_modules": ends, "layers_to_transform": blocks, "layers_pattern": "layers"}


def _plain(value: float) -> float | int:
    """Return a whole number as such: alpha comes out of products that round."""
    near = round(value, 6)
    return int(near) if near == int(near) else value


def _notes(config: Mapping[str, Any], base: str) -> list[str]:
    model = str(config["model"])
    notes = []
    try:
        kind = model_type(locate(model).path)
    except ModelError:
        kind = "unknown"
    if kind not in SAME_NAMES:
        notes.append(
            f"layers have mlx-lm's names; that transformers' are the same was not tried "
            f"for models of type {kind}"
        )
    if base.endswith(".gguf"):
        notes.append(f"PEFT cannot open {base}: load the model that it was made of")
    elif base != model:
        notes.append(f"trained on `{model}`, whose weights are rounded from those of {base}")
    return notes
