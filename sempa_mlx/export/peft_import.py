"""A PEFT LoRA, such as SemPA's own release, as an adapter folder here."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from sempa_mlx.config import LoraConfig
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.export.peft import LEAVES, PEFT_CONFIG, PEFT_WEIGHTS, PREFIX, read_tensors
from sempa_mlx.files import refuse_filled
from sempa_mlx.model.adapter_layers import adapter_shapes, choose_linears
from sempa_mlx.model.load import load_model
from sempa_mlx.model.lora import save_adapter

_OURS = {theirs: ours for ours, theirs in LEAVES.items()}
_NAME = re.compile(rf"{re.escape(PREFIX)}(.+?)\.(lora_[A-Za-z_]+(?:\.weight)?)$")
_BLOCK = re.compile(r"\.layers\.(\d+)\.")
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
UNKNOWN_HERE = (  # settings of PEFT whose effect no adapter here can have
    *("modules_to_save", "alpha_pattern", "layer_replication", "fan_in_fan_out", "lora_bias"),
    *("use_qalora", "trainable_token_indices", "target_parameters"),
)


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written, and how many layers of which rank and scale it has."""

    folder: Path
    base: str
    kind: str
    num_layers: int
    rank: int
    scale: float


def import_peft(source: Path, out: Path, *, model: str | None = None) -> Imported:
    """Write a PEFT LoRA, rsLoRA or DoRA adapter as an adapter folder with PromptEOL as its method.

    Args:
        source: folder with adapter_config.json and adapter_model.safetensors.
        out: folder to write.
        model: its base, as `--model`; by default what the adapter names.

    Raises:
        ModelError: it is no such folder, its base cannot be had or does not fit, or it holds what
            an adapter here cannot; every such thing is named.
        UsageError: `out` exists and is not an empty folder.
        ResourceError: it cannot be written.
    """
    refuse_filled(out)
    config = _read_config(source)
    tensors = read_tensors(source / PEFT_WEIGHTS)
    weights, faults = _renamed(tensors)
    faults = _setting_faults(config) + faults
    place = str(source / PEFT_CONFIG)
    if faults:
        _refuse(faults, place)
    name = model or config.get("base_model_name_or_path")
    if not name:
        raise ModelError(Problem("names no base model", place, fix="say which: --model"))
    loaded = load_model(str(name))
    rank = next(tensor.shape[1] for key, tensor in weights.items() if key.endswith(".lora_a"))
    kind = _kind(config)
    settings = LoraConfig(
        kind=kind,
        rank=rank,
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout") or 0),
        layers=_last_blocks(weights, len(loaded.model.layers)),
    )
    linears = choose_linears(loaded.model, -1, {key.rpartition(".")[0] for key in weights})
    if faults := _misfits(weights, linears, rank, len(loaded.model.layers)):
        _refuse(faults, str(source), f"its base is taken to be `{loaded.location.name}`")
    save_adapter(out, weights, settings, loaded)
    Encoder(loaded, EncoderSettings()).save_settings(out)
    return Imported(out, loaded.location.name, kind, len(linears), rank, settings.scale)


def _refuse(faults: list[str], place: str, state: str = "") -> None:
    raise ModelError(
        [Problem(fault, place) for fault in faults],
        state=f"{state}; nothing was written" if state else "nothing was written",
    )


def _read_config(source: Path) -> dict[str, Any]:
    """Read adapter_config.json, with what is missing in the folder named at once."""
    missing = [name for name in (PEFT_CONFIG, PEFT_WEIGHTS) if not (source / name).is_file()]
    if missing:
        pickled = (source / "adapter_model.bin").is_file()
        fix = "load it with peft and save it with safe_serialization=True" if pickled else ""
        what = f"not a PEFT folder: missing {', '.join(missing)}"
        if pickled:
            what += "; adapter_model.bin is a pickle, which is never loaded"
        raise ModelError(Problem(what, str(source), fix=fix))
    try:
        config = json.loads((source / PEFT_CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config["r"], int) or not isinstance(config["lora_alpha"], int | float):
            raise TypeError("r is a whole number, lora_alpha a number")
    except (ValueError, KeyError, TypeError) as error:
        what = f"not the settings of a LoRA ({error!r})"
        raise ModelError(Problem(what, str(source / PEFT_CONFIG))) from error
    return dict(config)


def _kind(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - one of LoraConfig's literals
    return "dora" if config.get("use_dora") else "rslora" if config.get("use_rslora") else "lora"


def _setting_faults(config: Mapping[str, Any]) -> list[str]:
    faults = []
    if config.get("peft_type") != "LORA":
        faults.append(f"peft_type is {config.get('peft_type')}; only LORA can be imported")
    if config.get("bias", "none") != "none":
        faults.append(f"bias: {config['bias']}: adapters here have no biases")
    if config.get("use_dora") and config.get("use_rslora"):
        faults.append("use_dora and use_rslora together are no kind of adapter here")
    faults += [
        f"{name}: {config[name]!r}: adapters here have no such thing"
        for name in UNKNOWN_HERE
        if config.get(name) not in _NOTHING
    ]
    return faults


def _renamed(tensors: Mapping[str, mx.array]) -> tuple[dict[str, mx.array], list[str]]:
    """Return the tensors under our names, in float32, and what has no name here."""
    weights, faults = {}, []
    for name, tensor in sorted(tensors.items()):
        match = _NAME.match(name)
        leaf = _OURS.get(match[2]) if match else None
        if match is None or leaf is None:
            faults.append(f"{name}: adapters here have no such tensor")
            continue
        turned = tensor.T if tensor.ndim == 2 else tensor
        weights[f"{match[1]}.{leaf}"] = mx.contiguous(turned.astype(mx.float32))
    ranks = {tensor.shape[1] for name, tensor in weights.items() if name.endswith(".lora_a")}
    if len(ranks) > 1:
        faults.append(f"ranks differ between layers ({sorted(ranks)}); adapters here have one")
    if not ranks and not faults:
        faults.append("holds no LoRA")
    return weights, faults


def _last_blocks(weights: Mapping[str, mx.array], depth: int) -> int:
    """Return how many of the last blocks are adapted, -1 for all."""
    first = min((int(m[1]) for name in weights if (m := _BLOCK.search(name))), default=0)
    return depth - first if first else -1


def _misfits(
    weights: Mapping[str, mx.array], linears: Mapping[str, Any], rank: int, depth: int
) -> list[str]:
    """List what does not fit the base, and gaps that mlx-lm's settings cannot say."""
    dora = any(name.endswith(".m") for name in weights)
    expected = {
        f"{layer}.{leaf}": shape
        for layer, linear in linears.items()
        for leaf, shape in adapter_shapes(linear, rank, dora=dora).items()
    }
    faults = []
    for name in sorted(expected.keys() | weights.keys()):
        if name not in expected:
            faults.append(f"{name}: the base has no such linear layer")
        elif name not in weights:
            faults.append(f"{name}: missing")
        elif tuple(weights[name].shape) != expected[name]:
            faults.append(f"{name}: shape {weights[name].shape}, the base needs {expected[name]}")
    return faults or _gaps(list(linears), depth)


def _gaps(layers: list[str], depth: int) -> list[str]:
    """List layers that are adapted in some of the last blocks but not in others."""
    found = {layer: _BLOCK.search(layer) for layer in layers}
    outside = [layer for layer, match in found.items() if match is None]
    if outside:
        return [f"{layer}: adapters here are on layers of blocks" for layer in outside]
    blocks: dict[int, set[str]] = {}
    for layer, match in found.items():
        if match is not None:
            blocks.setdefault(int(match[1]), set()).add(layer[match.end() :])
    every = set().union(*blocks.values())
    lacking = {block: every - blocks.get(block, set()) for block in range(min(blocks), depth)}
    return [
        f"block {block}: nothing on {', '.join(sorted(names))}; adapters here are on the same "
        "layers of all last blocks"
        for block, names in lacking.items()
        if names
    ]
