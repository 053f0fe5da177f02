"""What the config of a model's folder may not ask for: code of its own, or endless blocks."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.model.identity import weight_files

CODE_KEY = "model_file"  # mlx-lm's name for a Python file beside the weights
_OTHER_MODEL = (
    "take a model of a type that mlx-lm knows, or convert it to one where you trust that code: "
    "python -m mlx_lm convert --trust-remote-code"
)
MOST_BLOCKS = 1000  # more than any model has
_BLOCK_KEYS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """Refuse a folder that wants its own code run, or more blocks than it has tensors.

    mlx-lm builds every block before it looks at the weights. Without `weights`, which may be
    missing then, more blocks than any model has are refused.

    Raises:
        ModelError: it does.
        OSError, ValueError, RecursionError: its config or weights cannot be read.
    """
    place = folder / "config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("config.json is no JSON object")
    if config.get(CODE_KEY) is not None:
        what = f"the model brings code of its own ({CODE_KEY} in config.json), which is never run"
        raise ModelError(Problem(what, str(place), fix=_OTHER_MODEL))
    tensors = sum(map(_num_tensors, weight_files(folder))) if weights else MOST_BLOCKS
    blocks = _num_blocks(config)
    if blocks > tensors:
        what = f"{blocks} blocks in the config, {tensors} tensors in the files"
        raise ModelError(Problem(what, str(folder)))


def fix_for_code(folder: Path) -> str:
    """Say that code in a model's folder is not run, if its settings name any."""
    named = []
    for name in ("config.json", "tokenizer_config.json"):
        with suppress(OSError, ValueError, RecursionError):
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
            if isinstance(settings, dict):
                named += [f"{key} in {name}" for key in ("auto_map", CODE_KEY) if key in settings]
    if not named:
        return ""
    return f"it brings code of its own ({', '.join(named)}), which is never run; {_OTHER_MODEL}"


def _num_blocks(config: dict[str, Any]) -> int:
    texts = (config, config.get("text_config"))
    found = [part.get(key) for part in texts if isinstance(part, dict) for key in _BLOCK_KEYS]
    return max((each for each in found if isinstance(each, int)), default=0)


def _num_tensors(file: Path) -> int:
    try:
        with safe_open(file, framework="numpy") as opened:
            return len(opened.keys())
    except SafetensorError as error:
        raise ValueError(f"{file.name}: {error}") from error
