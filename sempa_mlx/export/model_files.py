"""A base as files: what beside the weights belongs to it, and in what precision it is stored."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx

from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.model.gguf import model_config, read_gguf
from sempa_mlx.model.identity import weight_files
from sempa_mlx.model.load import LoadedModel

CONFIG_FILE = "config.json"
_FLOATS = (mx.float32, mx.float16, mx.bfloat16)
_INDEX_FILE = "model.safetensors.index.json"
# What else may lie in a model's folder is not for others to have.
_SIDE_FILES = (
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tekken.json", "chat_template.*"),
    *("generation_config.json", "LICENSE*"),
)


def copy_base(path: Path, folder: Path) -> Path:
    """Copy a base as it is, a GGUF file or a folder, into a new folder; return what opens it.

    Raises:
        ModelError: a file beside the weights is a link that leads elsewhere.
    """
    folder.mkdir()
    if path.is_file():
        return Path(shutil.copyfile(path, folder / path.name))
    index = path.glob(_INDEX_FILE)
    for file in (*weight_files(path), *index, path / CONFIG_FILE):
        shutil.copyfile(file, folder / file.name)
    _copy_side_files(path, folder)
    return folder


def write_tokenizer(loaded: LoadedModel, folder: Path) -> None:
    """Write the tokenizer, its chat template and how to generate: the base's own files."""
    if loaded.location.path.is_file():
        loaded.tokenizer.save_pretrained(folder)
    else:
        _copy_side_files(loaded.location.path, folder)


def _copy_side_files(path: Path, folder: Path) -> None:
    found = {file for pattern in _SIDE_FILES for file in path.glob(pattern) if file.is_file()}
    chosen = sorted(file.name for file in found)
    foreign = [path / name for name in chosen if not _is_own(path / name)]
    if foreign:  # an export may be published
        what, fix = "a link that leads out of the model's folder", "put the file itself there"
        raise ModelError([Problem(what, str(file), fix=fix) for file in foreign])
    for name in chosen:
        shutil.copyfile(path / name, folder / name)


def _is_own(file: Path) -> bool:
    """Tell whether a file lies with its model; those of the Hub's cache link to `blobs`."""
    folder = file.parent.resolve()
    home = folder.parents[1] if folder.parent.name == "snapshots" else folder
    return file.resolve().is_relative_to(home)


def base_config(path: Path) -> dict[str, Any]:
    """Return the `config.json` of a base, without what describes quantised weights."""
    if path.is_file():
        return model_config(read_gguf(path))
    config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    return {name: value for name, value in config.items() if not name.startswith("quantization")}


def stored_dtype(path: Path) -> mx.Dtype:
    """Return the precision of a base's files: that of most of its tensors of real numbers.

    Of quantised weights those are the scales; a GGUF file is read in float32.
    """
    if path.is_file():
        return mx.float32
    counts: Counter[mx.Dtype] = Counter()
    for file in weight_files(path):
        tensors: Any = mx.load(str(file))
        counts.update(each.dtype for each in tensors.values() if each.dtype in _FLOATS)
    return max(_FLOATS, key=lambda dtype: counts[dtype])
