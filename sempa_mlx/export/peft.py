"""Adapters for PEFT: LoRA, rsLoRA and DoRA, tensor for tensor.

PEFT multiplies B A x with lora_alpha / r (rsLoRA: lora_alpha / sqrt(r)) and stores both matrices as
torch's linear layers do, so A is `lora_a` transposed and B `lora_b` transposed.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.export.adapted import NOTHING, Adapted, check_shared, open_adapted
from sempa_mlx.files import new_folder, refuse_filled, write_folder_files
from sempa_mlx.model.adapter_layers import can_be_adapted
from sempa_mlx.model.lora import adapter_weights

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
PARTS = {  # tensors of a layer: ours, PEFT's; what is a matrix is transposed
    "lora_a": "lora_A.weight",
    "lora_b": "lora_B.weight",
    "m": "lora_magnitude_vector",
}


@dataclass(frozen=True, slots=True)
class PeftExport:
    """What was written.

    Attributes:
        folder: the adapter of PEFT.
        base: what it calls its base.
        base_name: Hub id of the base, if it has one.
        scale: the dial that is in `lora_alpha`.
        is_from_gguf: the adapter was trained on other weights than transformers will open.
    """

    folder: Path
    base: str
    base_name: str | None
    scale: float
    is_from_gguf: bool


def export_peft(
    adapter: Path,
    out: Path,
    *,
    model: str | None = None,
    base: str | None = None,
    scale: float | None = None,
) -> PeftExport:
    """Write an adapter folder that `peft.PeftModel.from_pretrained` loads.

    Args:
        adapter: run folder.
        out: new folder.
        model: where the base lies now; by default where the run folder says.
        base: what the export calls the base; by default its Hub id, or the folder it lies in.
        scale: the dial, which is multiplied into `lora_alpha`; by default the run folder's own.

    Raises:
        ModelError: adapter or base cannot be read, do not belong together, or PEFT has no name for
            the layers.
        UsageError: `out` is taken, the base has no name that transformers could open, or DoRA is
            to be dialled.
        ResourceError: it cannot be written.
    """
    refuse_filled(out)
    opened = open_adapted(adapter, model=model)
    check_shared(opened.loaded)
    dial = opened.scale(scale)
    faults = _dial_faults(opened, dial) + ([] if base else _base_faults(opened))
    if faults:
        raise UsageError(faults, state=NOTHING)
    named = base or opened.public_name or opened.loaded.location.reference
    tensors = {
        _peft_name(name): mx.contiguous(value.T)
        for name, value in adapter_weights(opened.loaded.model).items()
    }
    config = _config(opened, dial) | {"base_model_name_or_path": named}
    if base is None and opened.loaded.location.revision:
        config["revision"] = opened.loaded.location.revision
    with new_folder(out) as stage:
        write_folder_files(
            stage,
            {
                WEIGHTS_FILE: lambda path: mx.save_safetensors(
                    str(path), tensors, metadata={"format": "pt"}
                ),
                CONFIG_FILE: lambda path: path.write_text(
                    json.dumps(config, indent=2) + "\n", encoding="utf-8"
                ),
            },
        )
    is_gguf = opened.loaded.location.path.suffix == ".gguf"
    return PeftExport(out, named, base or opened.public_name, dial, is_gguf)


def _dial_faults(opened: Adapted, dial: float) -> list[Problem]:
    if opened.config["fine_tune_type"] != "dora" or dial == 1.0:
        return []
    what = f"DoRA at scale {dial:g} is no DoRA: PEFT could not compute it"
    fix = "export it whole with --adapter-scale 1, or its weights with --to fused"
    return [Problem(what, str(opened.folder), fix=fix)]


def _base_faults(opened: Adapted) -> list[Problem]:
    """Say why transformers could not open the base under the name that it has here."""
    location = opened.loaded.location
    is_packed = location.path.is_dir() and "quantization" in json.loads(
        (location.path / "config.json").read_text(encoding="utf-8")
    )
    is_nameless = location.path.is_file() and opened.public_name is None
    if not (is_packed or is_nameless):
        return []
    what = "transformers cannot open this base: " + (
        "mlx-lm quantised it" if is_packed else "it is a GGUF file"
    )
    fix = "name the model it was made from: --base owner/model"
    return [Problem(what, str(location.path), fix=fix)]


def _peft_name(name: str) -> str:
    layer, _, part = name.rpartition(".")
    return f"{PREFIX}{layer}.{PARTS[part]}"


def _config(opened: Adapted, dial: float) -> dict[str, Any]:
    """Return PEFT's config, without its base; only keys that PEFT has long had."""
    parameters = opened.config["lora_parameters"]
    about = opened.config.get("sempa") or {}
    rank, scale, alpha = parameters["rank"], parameters["scale"], about.get("alpha", math.nan)
    is_rslora = about.get("kind") == "rslora" and alpha / math.sqrt(rank) == scale
    if not is_rslora and alpha / rank != scale:
        alpha = scale * rank
    alpha *= dial
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": parameters.get("dropout", 0.0),
        "bias": "none",
        "use_rslora": is_rslora,
        "use_dora": opened.config["fine_tune_type"] == "dora",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        **_targets(opened),
    }


def _targets(opened: Adapted) -> dict[str, Any]:
    """Name the adapted layers: by short names and blocks if those say it, else one by one."""
    model = opened.loaded.model
    adapted = {name.rpartition(".")[0] for name in adapter_weights(model)}
    paths = {id(module): path for path, module in model.named_modules()}
    blocks = [f"{paths[id(block)]}." for block in model.layers]
    reached = [
        index for index, block in enumerate(blocks) if any(a.startswith(block) for a in adapted)
    ]
    short = {path.rpartition(".")[2] for path in adapted}
    named = {
        path
        for path, module in model.named_modules()
        if path.rpartition(".")[2] in short
        and path.startswith(tuple(blocks[i] for i in reached))
        and can_be_adapted(module)
    }
    if named != adapted:
        return {"target_modules": sorted(adapted), "layers_to_transform": None}
    is_all = len(reached) == len(blocks)
    return {
        "target_modules": sorted(short),
        "layers_to_transform": None if is_all else reached,
    }
