"""An encoder as one folder: base, adapter, and how to embed, opened by `Encoder.load(folder)`.

The base lies in the folder `base` as the very files it was trained on, and the adapter's config
names it relative to itself. So the folder may be moved, vectors stay equal bit for bit, the dial
goes on working, and maps and coders that were fitted to the vectors still fit.
"""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from sempa_mlx.encoder.coder_file import CODER_FILE, describe_coder
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.export.adapted import BASE_NAME, NOTHING, open_adapted
from sempa_mlx.export.model_files import copy_base
from sempa_mlx.files import new_folder, refuse_filled
from sempa_mlx.model.load import Location
from sempa_mlx.model.lora import CONFIG_FILE, INSIDE, WEIGHTS_FILE

BASE_FOLDER = "base"


@dataclass(frozen=True, slots=True)
class EncoderExport:
    """What was written.

    Attributes:
        folder: the encoder.
        base_name: Hub id of the base, if it has one.
        scale: the dial it starts at.
        dim: length of its vectors.
    """

    folder: Path
    base_name: str | None
    scale: float
    dim: int


def export_encoder(
    adapter: Path, out: Path, *, model: str | None = None, scale: float | None = None
) -> EncoderExport:
    """Write one folder that holds all that an encoder needs.

    It is an adapter folder, so every command takes it as `--adapter-path`, and `embed` as `--model`
    too. A sparse coder and the fitted map in the run folder go with it.

    Args:
        adapter: run folder.
        out: new folder.
        model: where the base lies now; by default where the run folder says.
        scale: the dial that the folder starts at; by default the run folder's own.

    Raises:
        ModelError: adapter, base, map or settings cannot be read, or do not belong together.
        UsageError: `out` is taken, or a fitted map or coder belongs to another scale.
        ResourceError: it cannot be written.
    """
    refuse_filled(out)
    opened = open_adapted(adapter, model=model)
    settings = replace(opened.settings, adapter_scale=opened.scale(scale))
    encoder = Encoder(opened.loaded, settings)
    has_coder = (adapter / CODER_FILE).is_file()
    if has_coder and describe_coder(adapter)["vectors"] != encoder.vectors_key:
        what = f"the coder belongs to other vectors than those at scale {settings.adapter_scale:g}"
        fix = "export at the scale it was fitted at, or fit one there"
        raise UsageError(Problem(what, str(adapter / CODER_FILE), fix=fix), state=NOTHING)
    location = opened.loaded.location
    with new_folder(out) as stage:
        base = copy_base(location.path, stage / BASE_FOLDER)
        name = f"{INSIDE}{base.relative_to(stage).as_posix()}"
        shutil.copyfile(adapter / WEIGHTS_FILE, stage / WEIGHTS_FILE)
        about = (opened.config.get("sempa") or {}) | {BASE_NAME: opened.public_name}
        config = opened.config | {"model": name, "sempa": about}
        text = json.dumps(config, indent=2) + "\n"
        (stage / CONFIG_FILE).write_text(text, encoding="utf-8")
        opened.loaded.location = Location(name, base, "this folder", location.revision)
        encoder.save_settings(stage)
        opened.loaded.location = location
        if has_coder:
            shutil.copyfile(adapter / CODER_FILE, stage / CODER_FILE)
    return EncoderExport(out, opened.public_name, settings.adapter_scale, encoder.dim)
