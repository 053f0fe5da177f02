"""An encoder in one folder: base, adapter, settings, map and coder, with no path to the outside."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from sempa_mlx.encoder.coder_file import CODER_FILE
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.files import refuse_filled, replacing_folder
from sempa_mlx.model.adapter_config import CONFIG_FILE, WEIGHTS_FILE, read_adapter_config
from sempa_mlx.model.load import MODEL_FILES

BASE = "base"


def export_encoder(adapter: Path, out: Path) -> Path:
    """Write a folder that `Encoder.load` opens wherever it is put; vectors stay bit for bit.

    It is a run folder whose adapter names its base as `./base`: everything that takes
    `--adapter-path` takes it, the dial works, and at scale 0 it generates as the base does.

    Args:
        adapter: a run folder, or another adapter folder, which then embeds with PromptEOL.
        out: folder to write, whole or not at all; returned.

    Raises:
        ModelError: base or adapter cannot be read, or do not belong together.
        UsageError: `out` exists and is not an empty folder.
        ResourceError: it cannot be written.
    """
    config = read_adapter_config(adapter)
    refuse_filled(out)
    encoder = Encoder.load(adapter)  # whole, and of the base that it names
    source = encoder.loaded.location.path
    name = f"{BASE}.gguf" if source.is_file() else BASE
    config["model"] = f"./{name}"
    config.setdefault("sempa", {})["base_revision"] = None
    with replacing_folder(out) as folder:
        if source.is_file():
            shutil.copyfile(source, folder / name)
        else:
            (folder / name).mkdir()
            for path in _model_files(source):
                shutil.copyfile(path, folder / name / path.name)
        shutil.copyfile(adapter / WEIGHTS_FILE, folder / WEIGHTS_FILE)
        if (adapter / CODER_FILE).is_file():
            shutil.copyfile(adapter / CODER_FILE, folder / CODER_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        encoder.save_settings(folder)
    return out


def _model_files(folder: Path) -> Iterator[Path]:
    for pattern in MODEL_FILES:
        yield from sorted(folder.glob(pattern))
