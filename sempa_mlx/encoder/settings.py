"""How vectors are made, and the file `encoder.json` that says so beside an adapter."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sempa_mlx.encoder.methods import METHODS
from sempa_mlx.encoder.postprocess import PostFit, read_post, write_post
from sempa_mlx.errors import ModelError, Problem, UsageError
from sempa_mlx.files import json_text, write_text

SETTINGS_FILE = "encoder.json"
POST_FILE = "post.safetensors"
FORMAT = 2  # 1 knew no interventions, one template, and final states only
_STORED = {  # JSON types of the settings in `encoder.json`
    "method": str,
    "max_tokens": int,
    "normalize": bool,
    "truncate_dim": int | None,
    "adapter_scale": int | float,
    "layer": int,
}
_STORED_SINCE_2 = {"block": int | None, "strength": int | float | None}


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """How vectors are made; saved beside the adapter as `encoder.json`.

    `layer`, `block` and `strength` are the method's parameters (see `Parameters`); None stands for
    the method's default on the model at hand. `post` maps the vectors before they are cut.
    """

    method: str = "prompteol"
    max_tokens: int = 512
    normalize: bool = True
    truncate_dim: int | None = None
    adapter_scale: float = 1.0
    layer: int | None = None
    block: int | None = None
    strength: float | None = None
    post: PostFit | None = None

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        if not math.isfinite(self.adapter_scale):
            raise UsageError(f"adapter_scale is {self.adapter_scale}, which is no number")

    def with_method(self, method: str | None) -> "EncoderSettings":
        """Return these settings for another method, without what belongs to this one."""
        if method in (None, self.method):
            return self
        return replace(self, method=method, layer=None, block=None, strength=None, post=None)


def read_settings(folder: Path) -> EncoderSettings:
    """Read the settings part of `encoder.json`; adapters made elsewhere have none and get defaults.

    Raises:
        ModelError: the file is there but cannot be used.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return EncoderSettings()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(Problem(f"not an encoder file ({error!r})", str(path))) from error
    settings = settings_from(stored, str(path))
    post = stored.get("post")
    return settings if post is None else replace(settings, post=_read_fit(folder, post))


def read_scale(folder: Path) -> float:
    """Read from `encoder.json` the scale at which an adapter embeds; 1 without the file.

    Raises:
        ModelError: the file is there but says no scale.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return 1.0
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["adapter_scale"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(Problem(f"not an encoder file ({error!r})", str(path))) from error


def write_settings(folder: Path, described: dict[str, Any], post: PostFit | None) -> None:
    """Write what `Encoder.describe` returned, and the fitted map beside it if there is one."""
    if post is not None:
        write_post(folder / POST_FILE, post)
    write_text(folder / SETTINGS_FILE, json_text(described))


def settings_from(stored: Any, place: str) -> EncoderSettings:  # noqa: ANN401 - what JSON holds
    """Read the settings part of what `Encoder.describe` returned, without the map.

    Raises:
        ModelError: it is something else, or of another version; `place` is named.
    """
    try:
        newest = stored.get("format", 1) if isinstance(stored, dict) else 1
        if newest > FORMAT:
            raise ModelError(
                Problem("written by a later version", place, f"format {newest}", "update sempa-mlx")
            )
        kinds = _STORED | (_STORED_SINCE_2 if newest >= 2 else {})
        wrong = [name for name, kind in kinds.items() if not isinstance(stored[name], kind)]
        if wrong:
            raise TypeError(f"wrong type: {', '.join(wrong)}")
        settings = EncoderSettings(**{name: stored[name] for name in kinds})
        expected = [template.fingerprint for template in METHODS[settings.method].templates]
        templates = [stored["template"], *stored.get("auxiliary_templates", ())]
        found = [template["fingerprint"] for template in templates]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(Problem(f"not an encoder file ({error!r})", place)) from error
    if found != expected:
        what = "made with another version of its template"
        raise ModelError(Problem(what, place, fix="train or embed again"))
    return settings


def _read_fit(folder: Path, described: Any) -> PostFit:  # noqa: ANN401 - what JSON holds
    """Read the map beside an `encoder.json`, which says which one it has to be."""
    fit = read_post(folder / POST_FILE)
    if fit.describe() != described:
        what = f"not the map that {SETTINGS_FILE} names"
        raise ModelError(Problem(what, str(folder / POST_FILE)))
    return fit
