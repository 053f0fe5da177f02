"""The adapter: put on, dialled, saved and loaded in mlx-lm's own form.

The dial: at 0 the model is bit for bit the base, which makes it the reference of DPO without a
second copy. The folder holds `adapters.safetensors` (lora_a, lora_b, and m for DoRA) and
`adapter_config.json` (mlx-lm's keys, ours under the one extra key `sempa`).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from sempa_mlx import __version__
from sempa_mlx.config import LoraConfig
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.files import write_folder_files
from sempa_mlx.model.adapter_fit import config_faults, misfits
from sempa_mlx.model.adapter_layers import (
    AdapterLayer,
    adapt,
    choose_linears,
    covering_keys,
    dora_faults,
    is_adaptable,
    last_blocks,
    put_on,
)
from sempa_mlx.model.load import LoadedModel
from sempa_mlx.model.released import RELEASED

WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"
TENSORS = ("lora_a", "lora_b", "m")
INSIDE = "./"  # begins the name of a base that is kept in the adapter's own folder


def linear_keys(model: nn.Module, layers: int = -1) -> tuple[str, ...]:
    """Name every linear layer of the last `layers` blocks (-1: all), relative to the block.

    All of them together are SemPA's `all-linear`.
    """
    return tuple(
        sorted(
            {
                key
                for block in last_blocks(model, layers)
                for key, module in block.named_modules()
                if is_adaptable(module)
            }
        )
    )


def attach(model: nn.Module, settings: LoraConfig, seed: int) -> None:
    """Freeze the model and put adapters on the linear layers of its last `settings.layers` blocks.

    B starts at zero, so the model's output does not change (with DoRA up to rounding); A is drawn
    from `seed`. rsLoRA is LoRA with another scale.

    Raises:
        ModelError: a key of `settings.keys` names no linear layer of those blocks, the model has an
            adapter, or its weights do not allow DoRA. The model is left as it was.
    """
    _refuse_second_adapter(model)
    available = linear_keys(model, settings.layers)
    keys = settings.keys or available
    unknown = [key for key in keys if key not in available]
    if unknown:
        raise ModelError(
            [
                Problem(f"lora.keys: `{key}` is no linear layer", fix=f"one of {available}")
                for key in unknown
            ]
        )
    mx.random.seed(seed)
    adapters = adapt(
        choose_linears(model, settings.layers, keys),
        dora=settings.kind == "dora",
        rank=settings.rank,
        scale=settings.scale,
        dropout=settings.dropout,
    )
    if faults := dora_faults(adapters):
        raise ModelError(faults, state="nothing was attached")
    model.freeze()
    put_on(model, adapters)
    mx.eval(model.trainable_parameters())


def _refuse_second_adapter(model: nn.Module) -> None:
    if any("lora_a" in module for _, module in model.named_modules()):
        raise ModelError(Problem("the model has an adapter already", fix="load the base anew"))


@contextmanager
def dialled(model: nn.Module, factor: float) -> Iterator[None]:
    """Multiply the adapter's effect by `factor` in the block: 0 is the base, 1 the full adapter.

    0 skips the adapter's products. In between, the scale of LoRA is multiplied, and DoRA goes
    straight from the base's weights to the adapted ones. Blocks inside each other multiply.

    Only this model is dialled, and only in the current thread or asyncio task: a thread that is
    started inside the block begins at 1. The factor counts when the graph is built, not when it is
    evaluated; a function under `mx.compile` keeps the factor of its first call.

    Raises:
        ModelError: the model has adapter layers that know no dial, such as mlx-lm's own.
    """
    adapters = [module for _, module in model.named_modules() if "lora_a" in module]
    foreign = {type(module).__name__ for module in adapters if not isinstance(module, AdapterLayer)}
    if foreign and factor != 1.0:
        raise ModelError(
            Problem(
                f"the model's adapter has no dial ({', '.join(sorted(foreign))})",
                fix="put it on with sempa_mlx.model.lora.load_adapter",
            )
        )
    with ExitStack() as stack:
        for dial in {module.dial for module in adapters if isinstance(module, AdapterLayer)}:
            stack.enter_context(dial.turned(factor))
        yield


def adapter_fingerprint(model: nn.Module) -> str | None:
    """Hash the names and values of the adapter's tensors: 16 hex digits; None without adapter."""
    tensors = {
        f"{path}.{leaf}": module[leaf]
        for path, module in model.named_modules()
        if "lora_a" in module
        for leaf in TENSORS
        if leaf in module
    }
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + np.array(tensor.astype(mx.float32)).tobytes())
    return digest.hexdigest()[:16] if tensors else None


def adapter_weights(model: nn.Module) -> dict[str, mx.array]:
    """Return the adapter's tensors by name: lora_a, lora_b and DoRA's m of every adapted layer."""
    return _of_adapter(trained_weights(model))


def trained_weights(model: nn.Module) -> dict[str, mx.array]:
    """Return all trainable tensors by name: the adapter's, and a sparse coder's if one is in."""
    return dict(tree_flatten(model.trainable_parameters()))


def _of_adapter(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    return {name: tensor for name, tensor in weights.items() if name.rpartition(".")[2] in TENSORS}


def save_adapter(
    folder: Path, weights: dict[str, mx.array], settings: LoraConfig, loaded: LoadedModel
) -> None:
    """Write the adapter among some trained weights as a folder, whole or not at all.

    `keys` is always written, so that a later mlx-lm with other default targets loads it alike.
    rsLoRA is written as what it is to mlx-lm: LoRA with that scale.
    """
    weights = dict(sorted(_of_adapter(weights).items()))  # the same bytes, wherever they are from
    layers = {name.rpartition(".")[0] for name in weights}
    config = {
        "fine_tune_type": "dora" if settings.kind == "dora" else "lora",
        "model": loaded.location.reference,
        "num_layers": settings.layers,
        "lora_parameters": {
            "rank": settings.rank,
            "scale": settings.scale,
            "dropout": settings.dropout,
            "keys": covering_keys(loaded.model, settings.layers, layers),
        },
        "sempa": {
            "version": __version__,
            "kind": settings.kind,
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
            CONFIG_FILE: lambda path: path.write_text(
                json.dumps(config, indent=2) + "\n", encoding="utf-8"
            ),
        },
    )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read `adapter_config.json`; a base that lies in the folder itself is returned as its path.

    Raises:
        ModelError: the folder is no adapter folder, or its config lacks what loading needs.
    """
    missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            Problem(
                f"not an adapter folder: missing {', '.join(missing)}",
                place=str(folder),
                fix=f"train one: sempa-mlx train --adapter-path {folder}; or name a packaged one: "
                + ", ".join(RELEASED.values()),
            )
        )
    place = str(folder / CONFIG_FILE)
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if faults := config_faults(config):
            raise TypeError("; ".join(faults))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(Problem(f"not a LoRA config ({error!r})", place)) from error
    kind = config.setdefault("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ModelError(Problem(f"{kind} adapters are not supported", place))
    base = str(config.get("model"))
    if base.startswith(INSIDE) and (folder / base).exists():
        config["model"] = str(folder / base)
    return dict(config)


def check_adapter(folder: Path) -> dict[str, Any]:
    """Return the config of an adapter folder whose files can be read.

    Raises:
        ModelError: as `read_adapter_config`, or the weights are no safetensors file.
    """
    config = read_adapter_config(folder)
    _open_weights(folder)
    return config


def _open_weights(folder: Path) -> Any:  # noqa: ANN401 - a dict of arrays, to mypy one of many types
    """Open the tensors of an adapter folder; they are read when they are used."""
    try:
        return mx.load(str(folder / WEIGHTS_FILE))
    except (RuntimeError, ValueError) as error:
        problem = Problem(f"unreadable ({error})", str(folder / WEIGHTS_FILE))
        raise ModelError(problem) from error


def load_adapter(loaded: LoadedModel, folder: Path) -> dict[str, Any]:
    """Put the LoRA or DoRA adapter of `folder` on a freshly loaded base model; return its config.

    Its tensors become float32, whatever the file holds.

    Raises:
        ModelError: the adapter belongs to another base. Every mismatch is named, and the model is
            left as it was.
    """
    _refuse_second_adapter(loaded.model)
    config = read_adapter_config(folder)
    weights = _open_weights(folder)
    parameters = config["lora_parameters"]
    linears = choose_linears(loaded.model, config["num_layers"], parameters.get("keys"))
    if problems := misfits(loaded, linears, config, weights):
        raise ModelError(
            [Problem(what, place=str(folder)) for what in problems],
            state=f"the adapter was trained on `{config.get('model')}`; nothing was loaded",
        )
    adapters = adapt(
        linears,
        dora=config["fine_tune_type"] == "dora",
        rank=parameters["rank"],
        scale=parameters["scale"],
        dropout=parameters.get("dropout", 0.0),
    )
    put_on(loaded.model, adapters)
    # Files may be in half precision; products with such tensors would be slow on a CPU.
    wide = [(name, tensor.astype(mx.float32)) for name, tensor in weights.items()]
    loaded.model.load_weights(wide, strict=False)
    mx.eval(loaded.model.parameters())
    return config
