"""Adapters for mlx-lm: the folder as trained, and the base as a folder if it was a GGUF file."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from sempa_mlx.encoder.coder_file import CODER_FILE
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.fitting import rename_vectors
from sempa_mlx.encoder.settings import POST_FILE, SETTINGS_FILE, read_settings
from sempa_mlx.export.adapted import BASE_NAME, public_name
from sempa_mlx.files import json_text, new_folder, refuse_filled, write_folder_files
from sempa_mlx.model.gguf import build_model, model_config, read_gguf
from sempa_mlx.model.gguf_tokenizer import build_tokenizer
from sempa_mlx.model.identity import fingerprint, weight_files
from sempa_mlx.model.load import locate
from sempa_mlx.model.lora import CONFIG_FILE, INSIDE, WEIGHTS_FILE, check_adapter
from sempa_mlx.model.recorded import recorded_base

BASE_FOLDER = "base"


@dataclass(frozen=True, slots=True)
class MlxExport:
    """What was written.

    Attributes:
        adapter: the folder.
        model: what `--model` to use with it.
        inside: name of the base in the folder, if it was written there.
        base_name: Hub id of the base, if it has one.
    """

    adapter: Path
    model: str
    inside: str | None
    base_name: str | None


def export_mlx(adapter: Path, out: Path, *, base: str | None = None) -> MlxExport:
    """Write an adapter folder that `mlx_lm` loads with `--adapter-path`.

    A base that mlx-lm cannot open by itself (a GGUF file) is written as `out/base`, float32, with
    its tokenizer: exactly the weights the adapter was trained on.

    Args:
        adapter: run folder.
        out: new folder.
        base: what the export calls its base; by default the Hub id, or where it lies.

    Raises:
        ModelError: the adapter or its base cannot be read.
        UsageError: `out` exists and is not an empty folder.
    """
    config = check_adapter(adapter)
    refuse_filled(out)
    read_settings(adapter)
    about: dict[str, Any] = config.get("sempa") or {}
    location = locate(*recorded_base(adapter, config))
    model, name = str(location.path), base or location.reference
    is_gguf = location.path.suffix == ".gguf"
    known = base or public_name(location) or about.get(BASE_NAME)
    # A commit is one of the repository that it was found in.
    is_renamed = base not in (None, public_name(location), about.get(BASE_NAME))
    with new_folder(out) as stage:
        if is_gguf:
            files = write_gguf_base(location.path, stage / BASE_FOLDER)
            model, name = str(out / BASE_FOLDER), f"{INSIDE}{BASE_FOLDER}"
            identity = fingerprint(weight_files(files))
            about = about | {BASE_NAME: known, "base_fingerprint": identity}
        if is_renamed:
            about = about | {"base_revision": None}
        if about:
            config["sempa"] = about
        text = json.dumps(config | {"model": name}, indent=2) + "\n"
        (stage / CONFIG_FILE).write_text(text, encoding="utf-8")
        shutil.copyfile(adapter / WEIGHTS_FILE, stage / WEIGHTS_FILE)
        model_of = {"name": name} | ({"revision": None} if is_renamed else {})
        _copy_settings(adapter / SETTINGS_FILE, stage / SETTINGS_FILE, model_of)
        fitted = [name for name in (POST_FILE, CODER_FILE) if (adapter / name).is_file()]
        for beside in fitted:
            shutil.copyfile(adapter / beside, stage / beside)
        if is_gguf and fitted:  # to the same vectors, of a base with another fingerprint now
            before, after = _vectors_key(adapter), _vectors_key(stage)
            for beside in fitted:
                rename_vectors(stage / beside, before, after)
    return MlxExport(out, model, BASE_FOLDER if is_gguf else None, known)


def _vectors_key(adapter: Path) -> str:
    settings = replace(read_settings(adapter), post=None)
    return Encoder.load(adapter, settings=settings).vectors_key


def _copy_settings(source: Path, target: Path, model: dict[str, Any]) -> None:
    """Copy `encoder.json`, if there is one, with what the base is called in the export."""
    if source.is_file():
        settings = json.loads(source.read_text(encoding="utf-8"))
        if isinstance(settings.get("model"), dict):
            settings["model"] |= model
        target.write_text(json_text(settings), encoding="utf-8")


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
            "config.json": lambda path: path.write_text(config, encoding="utf-8"),
        },
    )
    build_tokenizer(gguf.metadata).save_pretrained(folder)
    return folder
