"""The settings of an adapter folder, and the names of its two files."""

import json
from pathlib import Path
from typing import Any

from sempa_mlx.errors import ModelError, Problem

WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "adapter_config.json"


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read `adapter_config.json`, in mlx-lm's form.

    A base named `./NAME` that lies in the folder itself comes back as its path.

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
        rank, scale = config["lora_parameters"]["rank"], config["lora_parameters"]["scale"]
        whole = isinstance(config["num_layers"], int) and isinstance(rank, int)
        if not (whole and isinstance(scale, int | float)):
            raise TypeError("num_layers and rank are whole numbers, scale is a number")
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(Problem(f"not a LoRA config ({error!r})", place)) from error
    beside = folder / str(config.get("model"))
    if str(config.get("model")).startswith("./") and beside.exists():
        config["model"] = str(beside)  # a folder that holds its base
    kind = config.setdefault("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ModelError(Problem(f"{kind} adapters are not supported", place))
    return dict(config)
