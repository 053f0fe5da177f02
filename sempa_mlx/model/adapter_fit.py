"""Whether an adapter fits a base: the weights it was trained on, and the shapes of its tensors."""

import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from sempa_mlx.model.adapter_layers import adapter_shapes
from sempa_mlx.model.load import ALIASES, LoadedModel, embedded_file


def config_faults(config: Mapping[str, Any]) -> list[str]:
    """List values in an adapter's config that cannot be what they stand for.

    Raises:
        KeyError: it lacks what loading needs.
        TypeError: it, or a part of it, is no object.
    """
    parameters = config["lora_parameters"]
    rank, scale, layers = parameters["rank"], parameters["scale"], config["num_layers"]
    dropout, keys = parameters.get("dropout", 0.0), parameters.get("keys")
    names = keys is None or (isinstance(keys, list) and all(isinstance(each, str) for each in keys))
    checks = {
        "num_layers is a whole number": type(layers) is int,
        "rank is a whole number above 0": type(rank) is int and rank > 0,
        "scale is a number": is_number(scale),
        "dropout lies in 0 to less than 1": is_number(dropout) and 0 <= dropout < 1,
        "keys are null or names in a list": names,
        "sempa is an object": isinstance(config.get("sempa") or {}, dict),
    }
    return [what for what, is_so in checks.items() if not is_so]


def is_number(value: object) -> bool:
    """Tell whether a JSON value is a finite number; true is none."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def misfits(
    loaded: LoadedModel,
    linears: Mapping[str, nn.Module],
    config: Mapping[str, Any],
    weights: Mapping[str, mx.array],
) -> list[str]:
    """List why an adapter does not fit a model, nothing if it does.

    Args:
        loaded: the base.
        linears: its layers that the adapter's config names.
        config: what `read_adapter_config` returned.
        weights: the adapter's tensors by name.
    """
    return _other_base(loaded, config) + _mismatches(linears, config, weights)


def _other_base(loaded: LoadedModel, config: Mapping[str, Any]) -> list[str]:
    base = (config.get("sempa") or {}).get("base_fingerprint")
    if base in (None, loaded.fingerprint):
        return []
    trained, given = f"`{config.get('model')}` ({base})", loaded.location.name
    alias = ALIASES.get(str(config.get("model")))
    where = "" if alias is None or embedded_file(alias) else f"; they are in {alias.package}"
    return [f"trained on other weights: {trained}, not `{given}` ({loaded.fingerprint}){where}"]


def _mismatches(
    linears: Mapping[str, nn.Module], config: Mapping[str, Any], weights: Mapping[str, mx.array]
) -> list[str]:
    """List what in an adapter does not fit the layers that its config names."""
    if not linears:
        return ["the config names no linear layer of the model"]
    rank, dora = config["lora_parameters"]["rank"], config["fine_tune_type"] == "dora"
    expected = {
        f"{layer}.{leaf}": shape
        for layer, linear in linears.items()
        for leaf, shape in adapter_shapes(linear, rank, dora=dora).items()
    }
    untrained = linears.keys() - {name.rpartition(".")[0] for name in weights}
    found = [f"{layer}: the config names it, the file lacks it" for layer in sorted(untrained)]
    for name in sorted(expected.keys() | weights.keys()):
        if name not in expected:  # mlx-lm would drop it, or refuse
            found.append(f"{name}: model and config have no such adapter tensor")
        elif name not in weights:
            if name.rpartition(".")[0] not in untrained:
                found.append(f"{name}: missing")
        elif tuple(weights[name].shape) != expected[name]:
            shape = tuple(weights[name].shape)
            found.append(f"{name}: shape {shape}, the model needs {expected[name]}")
    return found
