"""Adapters of PEFT, such as SemPA's own releases, as adapter folders here.

The tensors are taken over bit for bit, transposed; what mlx-lm's form cannot say is refused.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from pydantic import ValidationError

from sempa_mlx.config import LoraConfig
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.export.adapted import NOTHING, check_shared
from sempa_mlx.export.peft import CONFIG_FILE, PARTS, WEIGHTS_FILE
from sempa_mlx.export.peft_config import PeftConfig, differences, read_peft_config
from sempa_mlx.files import new_folder, refuse_filled
from sempa_mlx.model.adapter_layers import (
    adapt,
    adapter_shapes,
    choose_linears,
    dora_faults,
    put_on,
)
from sempa_mlx.model.load import LoadedModel, load_model
from sempa_mlx.model.lora import adapter_weights, save_adapter

OURS = {part.removesuffix(".weight"): name for name, part in PARTS.items()}
# PEFT leaves the adapter's name out; other programs that write its files do not always.
_NAME = re.compile(r"base_model\.model\.(.+?)\.(lora_\w+)(?:\.default)?(?:\.weight)?")
_OUTSIDE = ("embed_tokens", "lm_head")

Tensors = dict[str, dict[str, mx.array]]  # by layer, by our names


@dataclass(frozen=True, slots=True)
class PeftImport:
    """What was written.

    Attributes:
        folder: the adapter folder.
        base: what it goes on.
        named_base: what PEFT's config calls its base, if it does.
        num_layers: linear layers with an adapter.
        settings: kind, rank and scale of the adapter.
    """

    folder: Path
    base: str
    named_base: str | None
    num_layers: int
    settings: LoraConfig


def import_peft(folder: Path, out: Path, *, model: str | None = None) -> PeftImport:
    """Turn a LoRA, rsLoRA or DoRA adapter of PEFT into an adapter folder that embeds.

    `encoder.json` gets the default settings: PromptEOL, the adapter at full strength.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        out: new adapter folder.
        model: base; by default the one that PEFT's config names.

    Raises:
        ModelError: the adapter cannot be read, holds what mlx-lm's form cannot say, or does not
            fit its base; every fault of a kind is named.
        UsageError: `out` exists and is not an empty folder.
        ResourceError: it cannot be written.
    """
    refuse_filled(out)
    config, faults = read_peft_config(folder)
    tensors, more = _read_tensors(folder / WEIGHTS_FILE)
    faults += more + _uneven(config, tensors, str(folder / CONFIG_FILE))
    if faults:
        raise ModelError(faults, state=NOTHING)
    settings = _settings(config, next(iter(tensors)), str(folder / CONFIG_FILE))
    loaded = _load_base(config, model, str(folder / CONFIG_FILE))
    check_shared(loaded)
    _put_on(loaded, tensors, settings, str(folder))
    with new_folder(out) as stage:
        weights = adapter_weights(loaded.model)
        save_adapter(stage, weights, _with_layers(settings, loaded.model, tensors), loaded)
        Encoder(loaded).save_settings(stage)
    return PeftImport(out, loaded.location.name, config.base, len(tensors), settings)


def _read_tensors(path: Path) -> tuple[Tensors, list[Problem]]:
    """Read the tensors by layer, under our names and turned round; list those without a place."""
    try:
        stored: Any = mx.load(str(path))
        mx.eval(stored)
    except (RuntimeError, ValueError) as error:
        fix = "download or save it again"
        raise ModelError(Problem(f"unreadable ({error})", str(path), fix=fix)) from error
    found: Tensors = {}
    faults = []
    for name, value in sorted(stored.items()):
        match = _NAME.fullmatch(name)
        layer, part = (match[1], OURS.get(match[2])) if match else (name, None)
        if layer.rpartition(".")[2] in _OUTSIDE:
            what = f"{name}: adapters of embeddings and output head cannot be carried over"
            faults.append(Problem(what, str(path)))
        elif part is None:
            faults.append(Problem(f"{name}: no tensor of LoRA or DoRA", str(path)))
        else:
            found.setdefault(layer, {})[part] = value.T
    if not found and not faults:
        faults.append(Problem("holds no tensors", str(path)))
    return found, faults


def _uneven(config: PeftConfig, tensors: Tensors, place: str) -> list[Problem]:
    ranks = {layer: config.ranks.of(layer) for layer in tensors}
    scales = {layer: config.scale(layer) for layer in tensors}
    found = differences(ranks, "the rank") + differences(scales, "the scale")
    return [Problem(what, place) for what in found]


def _settings(config: PeftConfig, layer: str, place: str) -> LoraConfig:
    """Return the settings that give every layer the rank and scale of this one."""
    rank, alpha = int(config.ranks.of(layer)), config.alphas.of(layer)
    kind = "rslora" if config.is_rslora else "lora"
    if config.is_dora:
        kind, alpha = "dora", alpha if not config.is_rslora else config.scale(layer) * rank
    try:
        return LoraConfig.model_validate(
            {"kind": kind, "rank": rank, "alpha": alpha, "dropout": config.dropout}
        )
    except ValidationError as error:
        what = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())
        raise ModelError(Problem(what, place), state=NOTHING) from error


def _load_base(config: PeftConfig, model: str | None, place: str) -> LoadedModel:
    name = model or config.base
    if name is None:
        raise ModelError(Problem("names no base", place, fix="name it: --model"), state=NOTHING)
    try:
        return load_model(name, revision=None if model else config.revision)
    except ModelError as error:
        if model:
            raise
        state = f"{place} names this base; --model says where it is; {NOTHING}"
        raise ModelError(error.problems, state=state) from error


def _put_on(loaded: LoadedModel, tensors: Tensors, settings: LoraConfig, place: str) -> None:
    """Put the adapter on the base.

    Raises:
        ModelError: it does not fit; every fault is named.
    """
    is_dora = settings.kind == "dora"
    linears = choose_linears(loaded.model, -1, tensors.keys())
    faults = []
    for layer, parts in tensors.items():
        if layer not in linears:
            faults.append(f"{layer}: no linear layer of the model")
            continue
        shapes = adapter_shapes(linears[layer], settings.rank, dora=is_dora)
        for part in sorted(shapes.keys() | parts.keys()):
            faults += _part_faults(f"{layer}.{part}", parts.get(part), shapes.get(part))
    if faults:
        state = f"the adapter does not fit `{loaded.location.name}`; {NOTHING}"
        raise ModelError([Problem(what, place) for what in faults], state=state)
    adapters = adapt(
        linears,
        dora=is_dora,
        rank=settings.rank,
        scale=settings.scale,
        dropout=settings.dropout,
    )
    if problems := dora_faults(adapters):
        raise ModelError(problems, state=NOTHING)
    put_on(loaded.model, adapters)
    weights = [
        (f"{layer}.{part}", each) for layer in tensors for part, each in tensors[layer].items()
    ]
    loaded.model.load_weights(weights, strict=False)
    mx.eval(loaded.model.parameters())


def _part_faults(name: str, given: mx.array | None, shape: tuple[int, ...] | None) -> list[str]:
    if shape is None:
        return [f"{name}: the config says nothing of it"]
    if given is None:
        return [f"{name}: missing"]
    if tuple(given.shape) != shape:
        return [f"{name}: shape {tuple(given.shape)}, the model and the rank need {shape}"]
    return []


def _with_layers(settings: LoraConfig, model: nn.Module, tensors: Tensors) -> LoraConfig:
    """Return the settings with the number of last blocks that hold the adapter; -1: all."""
    paths = {id(module): path for path, module in model.named_modules()}
    held = [any(t.startswith(f"{paths[id(b)]}.") for t in tensors) for b in model.layers]
    layers = -1 if held[0] else len(held) - held.index(True)
    return settings.model_copy(update={"layers": layers})
