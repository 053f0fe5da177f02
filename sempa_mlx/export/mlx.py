"""Adapters for mlx-lm: the folder as trained, and the base as a folder if it was a GGUF file."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from sempa_mlx.encoder.settings import SETTINGS_FILE
from sempa_mlx.files import refuse_filled, write_folder_files
from sempa_mlx.model.gguf import build_model, model_config, read_gguf
from sempa_mlx.model.gguf_tokenizer import build_tokenizer
from sempa_mlx.model.identity import fingerprint, weight_files
from sempa_mlx.model.load import locate
from sempa_mlx.model.lora import CONFIG_FILE, WEIGHTS_FILE, read_adapter_config

BASE_FOLDER = "base"


@dataclass(frozen=True, slots=True)
class MlxExport:
    """What was written: the adapter folder, and what `--model` to use with it."""

    adapter: Path
    model: str


def export_mlx(adapter: Path, out: Path) -> MlxExport:
    """Write an adapter folder that `mlx_lm` loads with `--adapter-path`.

    A base that mlx-lm cannot open by itself (a GGUF file) is written as `out/base`, float32, with
    its tokenizer: exactly the weights the adapter was trained on.

    Raises:
        ModelError: the adapter or its base cannot be read.
        UsageError: `out` exists and is not an empty folder.
    """
    config = read_adapter_config(adapter)
    refuse_filled(out)
    location = locate(str(config["model"]), config.get("sempa", {}).get("base_revision"))
    model = str(location.path)
    if location.path.suffix == ".gguf":
        base = write_gguf_base(location.path, out / BASE_FOLDER)
        model = str(base)
        config.setdefault("sempa", {})["base_fingerprint"] = fingerprint(weight_files(base))
    config["model"] = model
    copies = [name for name in (WEIGHTS_FILE, SETTINGS_FILE) if (adapter / name).is_file()]
    writers: dict[str, Callable[[Path], object]] = {
        name: partial(shutil.copyfile, adapter / name) for name in copies
    }
    writers[CONFIG_FILE] = lambda path: path.write_text(json.dumps(config, indent=2) + "\n")
    write_folder_files(out, writers)
    return MlxExport(out, model)


def write_gguf_base(file: Path, folder: Path) -> Path:
    """Write a GGUF model as a folder that mlx-lm opens; returns the folder."""
    gguf = read_gguf(file)
    weights = dict(tree_flatten(build_model(gguf, keep_quantized=False).parameters()))
    config = json.dumps(model_config(gguf), indent=2) + "\n"
    write_folder_files(
        folder,
        {
            "model.safetensors": lambda path: mx.save_safetensors(
                str(path), weights, metadata={"format": "mlx"}
            ),
            "config.json": lambda path: path.write_text(config),
        },
    )
    build_tokenizer(gguf.metadata).save_pretrained(folder)
    return folder
