"""PEFT's `adapter_config.json`, read as far as an adapter here can say the same."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.export.peft import CONFIG_FILE, WEIGHTS_FILE
from sempa_mlx.model.adapter_fit import is_number

PICKLE_FILE = "adapter_model.bin"
# Settings that do not change what an adapter computes, or that its tensors repeat.
_NEUTRAL = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha"),
    *("lora_dropout", "bias", "use_rslora", "use_dora", "init_lora_weights", "rank_pattern"),
    *("alpha_pattern", "layers_to_transform", "layers_pattern", "megatron_config"),
    *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying"),
    *("lora_dtype", "lorap_lr_ratio", "lorap_emb_lr"),  # of ms-swift
}
# Settings that do, and what they mean.
_REFUSED = {
    "modules_to_save": "whole layers were trained beside the adapter",
    "trainable_token_indices": "rows of the embeddings were trained",
    "target_parameters": "the adapter sits on bare parameters",
    "layer_replication": "blocks of the base are repeated",
    "lora_bias": "the low-rank products have biases",
    "fan_in_fan_out": "weights are stored transposed",
    "use_qalora": "inputs are pooled in groups",
    "alora_invocation_tokens": "the adapter acts after certain tokens only",
    "use_bdlora": "the matrices are block-diagonal",
    "arrow_config": "the adapter is mixed with others, token by token",
}
# How A and B began; other ways, such as PiSSA, take their start out of the base's own weights.
_KNOWN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class PerLayer:
    """A number of each layer: that of the first pattern that fits its name, else the default."""

    default: float
    patterns: Mapping[str, float]

    def of(self, layer: str) -> float:
        """Return the number of a layer, found as PEFT finds it."""
        for pattern, value in self.patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return value
        return self.default


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What a config says about the adapter's layers.

    Attributes:
        base: name of the base, if it is given.
        revision: of the base on the Hub, if it is given.
        is_dora: weights have trained magnitudes.
        is_rslora: the scale is alpha / sqrt(rank).
        dropout: in training.
        ranks: columns of A.
        alphas: `lora_alpha`.
    """

    base: str | None
    revision: str | None
    is_dora: bool
    is_rslora: bool
    dropout: float
    ranks: PerLayer
    alphas: PerLayer

    def scale(self, layer: str) -> float:
        """Return what the low-rank product of a layer is multiplied with."""
        rank = self.ranks.of(layer)
        return self.alphas.of(layer) / (math.sqrt(rank) if self.is_rslora else rank)


def read_peft_config(folder: Path) -> tuple[PeftConfig, list[Problem]]:
    """Read the config of a PEFT adapter, and list what in it cannot be carried over.

    Raises:
        ModelError: the folder holds no PEFT adapter in safetensors, or the config is none of LoRA.
    """
    _check_files(folder)
    place = str(folder / CONFIG_FILE)
    try:
        raw = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        kind = raw["peft_type"]
        if kind != "LORA":
            fix = "LoRA, rsLoRA and DoRA can be imported"
            raise ModelError(Problem(f"PEFT adapters of type {kind} are not supported", place, fix))
        _check_types(raw)
        config = PeftConfig(
            raw.get("base_model_name_or_path") or None,
            raw.get("revision") or None,
            bool(raw.get("use_dora")),
            bool(raw.get("use_rslora")),
            float(raw.get("lora_dropout") or 0.0),
            _per_layer(raw["r"], raw.get("rank_pattern")),
            _per_layer(raw["lora_alpha"], raw.get("alpha_pattern")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        raise ModelError(Problem(f"not a config of PEFT ({error!r})", place)) from error
    return config, [Problem(what, place) for what in _foreign(raw)]


def _check_types(raw: Mapping[str, Any]) -> None:
    """Refuse settings of another type than PEFT's.

    Raises:
        TypeError: some are; all of them are named.
    """
    patterns = [raw.get("alpha_pattern"), raw.get("rank_pattern")]
    alphas, ranks = ([*(each or {}).values()] for each in patterns)
    faults = {
        "lora_alpha is no number": not all(map(is_number, [raw["lora_alpha"], *alphas])),
        "r is no whole number": not all(type(each) is int for each in [raw["r"], *ranks]),
        "lora_dropout is no number": not is_number(raw.get("lora_dropout") or 0.0),
    }
    for key in ("base_model_name_or_path", "revision"):
        faults[f"{key} is no text"] = not isinstance(raw.get(key) or "", str)
    if any(faults.values()):
        raise TypeError("; ".join(what for what, is_so in faults.items() if is_so))


def _check_files(folder: Path) -> None:
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if not missing:
        return
    if WEIGHTS_FILE in missing and (folder / PICKLE_FILE).is_file():
        what = f"{PICKLE_FILE} is a pickle, which can run code when it is read, so it never is"
        fix = (
            "convert it where you trust it, in Python with PEFT: AutoPeftModelForCausalLM"
            f".from_pretrained({str(folder)!r}).save_pretrained(NEW, safe_serialization=True)"
        )
        raise ModelError(Problem(what, str(folder), fix=fix))
    what = f"not an adapter of PEFT: missing {', '.join(missing)}"
    fix = f"name a folder with {CONFIG_FILE} and {WEIGHTS_FILE}; of the Hub: hf download owner/name"
    raise ModelError(Problem(what, str(folder), fix=fix))


def _per_layer(default: Any, patterns: Any) -> PerLayer:  # noqa: ANN401 - what JSON holds
    found = {str(pattern): float(value) for pattern, value in (patterns or {}).items()}
    for pattern in found:
        if not _is_quick(pattern):
            raise ValueError(f"the pattern {pattern[:60]!r} could take for ever to match")
        re.compile(pattern)
    if min(default, *found.values(), default) <= 0:
        raise ValueError("rank and lora_alpha are above 0")
    return PerLayer(float(default), found)


def _is_quick(pattern: str) -> bool:
    """Tell whether trying a pattern must end soon, as it need not for `(a+)+` or `(a|a)(a|a)…`."""
    repetitions = len(re.findall(r"(?<!\()[*+?{]", pattern))
    of_groups = re.search(r"\)[*+?{]", pattern)
    return len(pattern) <= 500 and repetitions <= 2 and not of_groups and pattern.count("(") <= 3


def _foreign(raw: Mapping[str, Any]) -> list[str]:
    """List the settings that an adapter here has no place for."""
    found = [f"{key}: {what}" for key, what in _REFUSED.items() if raw.get(key)]
    if (bias := raw.get("bias", "none")) != "none":
        found.append(f"bias {bias!r}: biases of the base were trained")
    start = raw.get("init_lora_weights", True)
    if start not in _KNOWN_STARTS:
        found.append(f"init_lora_weights {start!r}: the base is not as it was when training began")
    unknown = [key for key, value in raw.items() if value and key not in _NEUTRAL | {*_REFUSED}]
    return found + [f"{key}: a setting that is not known here" for key in sorted(unknown)]


def differences(values: Mapping[str, float], what: str) -> list[str]:
    """Say how a number differs between layers; nothing if it does not."""
    counts = Counter(values.values())
    if len(counts) < 2:
        return []
    listed = ", ".join(f"{value:g} in {count}" for value, count in sorted(counts.items()))
    return [f"{what} differs between layers ({listed}); mlx-lm has one for all"]
