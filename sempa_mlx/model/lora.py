"""The adapter: LoRA layers put on, dialled, saved and loaded in mlx-lm's own form.

The dial: with scale 0 the model is bit for bit the base, which makes it the reference of DPO
without a second copy. The folder holds `adapters.safetensors` (only lora_a and lora_b) and
`adapter_config.json` (mlx-lm's keys, ours under the one extra key `sempa`).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from sempa_mlx import __version__
from sempa_mlx.config import LoraConfig
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.files import write_folder_files
from sempa_mlx.model.load import LoadedModel

WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"


def linear_keys(model: nn.Module) -> tuple[str, ...]:
    """Name every linear layer of a block, relative to the block (SemPA's `all-linear`)."""
    return tuple(
        sorted(
            {
                path
                for layer in model.layers
                for path, module in layer.named_modules()
                if isinstance(module, nn.Linear | nn.QuantizedLinear)
            }
        )
    )


def attach(model: nn.Module, settings: LoraConfig, seed: int) -> None:
    """Freeze the model and put LoRA on the linear layers of its last `settings.layers` blocks.

    B starts at zero, so the model's output does not change; A is drawn from `seed`.

    Raises:
        ModelError: a key of `settings.keys` names no linear layer.
    """
    available = linear_keys(model)
    keys = settings.keys or available
    unknown = [key for key in keys if key not in available]
    if unknown:
        raise ModelError(
            [
                Problem(f"lora.keys: `{key}` is no linear layer", fix=f"one of {available}")
                for key in unknown
            ]
        )
    model.freeze()
    mx.random.seed(seed)
    linear_to_lora_layers(
        model,
        settings.layers,
        {
            "rank": settings.rank,
            "scale": settings.scale,
            "dropout": settings.dropout,
            "keys": list(keys),
        },
    )
    mx.eval(model.trainable_parameters())


def _lora_layers(model: nn.Module) -> list[LoRALinear]:
    return [module for _, module in model.named_modules() if isinstance(module, LoRALinear)]


@contextmanager
def dialled(model: nn.Module, factor: float) -> Iterator[None]:
    """Multiply the adapter's scale by `factor` for a while: 0 is the base, 1 the full adapter."""
    layers = _lora_layers(model)
    before = [layer.scale for layer in layers]
    for layer, scale in zip(layers, before, strict=True):
        layer.scale = scale * factor
    try:
        yield
    finally:
        for layer, scale in zip(layers, before, strict=True):
            layer.scale = scale


def adapter_weights(model: nn.Module) -> dict[str, mx.array]:
    """Return the trainable tensors by name: lora_a and lora_b of every adapted layer."""
    return dict(tree_flatten(model.trainable_parameters()))


def save_adapter(
    folder: Path, weights: dict[str, mx.array], settings: LoraConfig, loaded: LoadedModel
) -> None:
    """Write the adapter folder, whole or not at all.

    `keys` is always written, so that a later mlx-lm with other default targets loads it alike.
    """
    names = {name.split(".layers.")[1].split(".", 1)[1].rsplit(".", 1)[0] for name in weights}
    config = {
        "fine_tune_type": "lora",
        "model": loaded.location.reference,
        "num_layers": settings.layers,
        "lora_parameters": {
            "rank": settings.rank,
            "scale": settings.scale,
            "dropout": settings.dropout,
            "keys": sorted(names),
        },
        "sempa": {
            "version": __version__,
            "alpha": settings.alpha,
            "base_revision": loaded.location.revision,
            "base_fingerprint": loaded.fingerprint,
        },
    }
    write_folder_files(
        folder,
        {
            WEIGHTS_FILE: lambda path: mx.save_safetensors(
                str(path), weights, metadata={"format": "mlx"}
            ),
            CONFIG_FILE: lambda path: path.write_text(json.dumps(config, indent=2) + "\n"),
        },
    )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read `adapter_config.json`.

    Raises:
        ModelError: the folder is no adapter folder, or its config lacks what loading needs.
    """
    missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            Problem(
                f"not an adapter folder: missing {', '.join(missing)}",
                place=str(folder),
                fix="train one: sempa-mlx train --adapter-path " + str(folder),
            )
        )
    place = str(folder / CONFIG_FILE)
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        config["num_layers"], config["lora_parameters"]["rank"], config["lora_parameters"]["scale"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(Problem(f"not a LoRA config ({error!r})", place)) from error
    if config.get("fine_tune_type", "lora") != "lora":
        raise ModelError(Problem(f"{config['fine_tune_type']} adapters are not supported", place))
    return dict(config)


def load_adapter(loaded: LoadedModel, folder: Path) -> dict[str, Any]:
    """Put the adapter of `folder` on a freshly loaded base model; return its config.

    Raises:
        ModelError: the adapter belongs to another base. Every mismatch is named, and the model is
            left as it was.
    """
    config = read_adapter_config(folder)
    try:
        weights: Any = mx.load(str(folder / WEIGHTS_FILE))
    except (RuntimeError, ValueError) as error:
        problem = Problem(f"unreadable ({error})", str(folder / WEIGHTS_FILE))
        raise ModelError(problem) from error
    problems = _mismatches(loaded, config, weights)
    if problems:
        raise ModelError(
            [Problem(what, place=str(folder)) for what in problems],
            state=f"the adapter was trained on `{config.get('model')}`; nothing was loaded",
        )
    parameters = {"dropout": 0.0} | config["lora_parameters"]
    linear_to_lora_layers(loaded.model, config["num_layers"], parameters)
    loaded.model.load_weights(list(weights.items()), strict=False)
    loaded.model.eval()
    mx.eval(loaded.model.parameters())
    return config


def _mismatches(
    loaded: LoadedModel, config: dict[str, Any], weights: dict[str, mx.array]
) -> list[str]:
    """List what in an adapter does not fit the model, without touching the model."""
    found = []
    base = config.get("sempa", {}).get("base_fingerprint")
    if base not in (None, loaded.fingerprint):
        found.append(
            f"trained on other weights: `{config.get('model')}` ({base}), "
            f"not `{loaded.location.name}` ({loaded.fingerprint})"
        )
    linears = _adapted_linears(loaded.model, config)
    rank = config["lora_parameters"]["rank"]
    untrained = linears.keys() - {name.rpartition(".")[0] for name in weights}
    found += [f"{layer}: the config names it, the file lacks it" for layer in sorted(untrained)]
    for name, tensor in sorted(weights.items()):
        layer, _, leaf = name.rpartition(".")
        if leaf not in ("lora_a", "lora_b") or layer not in linears:
            found.append(f"{name}: model and config have no such adapter tensor")
            continue
        inputs, outputs = linears[layer]
        expected = (inputs, rank) if leaf == "lora_a" else (rank, outputs)
        if tuple(tensor.shape) != expected:
            found.append(f"{name}: shape {tuple(tensor.shape)}, the model needs {expected}")
        partner = f"{layer}.{'lora_b' if leaf == 'lora_a' else 'lora_a'}"
        if partner not in weights:
            found.append(f"{partner}: missing")
    return found


def _adapted_linears(model: nn.Module, config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return (inputs, outputs) of the linear layers that mlx-lm adapts under this config.

    Tensors of other layers would be dropped in silence.
    """
    keys = config["lora_parameters"].get("keys")
    blocks = model.layers[-max(config["num_layers"], 0) :]
    inside = {
        id(module)
        for block in blocks
        for key, module in block.named_modules()
        if keys is None or key in keys
    }
    return {
        path: _dims(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.QuantizedLinear)
        and (id(module) in inside or path in (keys or ()))
    }


def _dims(module: nn.Module) -> tuple[int, int]:
    """Return (inputs, outputs) of a plain or quantised linear layer."""
    outputs, inputs = module.weight.shape
    if isinstance(module, nn.QuantizedLinear):
        inputs = inputs * 32 // module.bits
    return inputs, outputs
