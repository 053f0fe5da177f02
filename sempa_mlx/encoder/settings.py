"""How vectors are made, and the file `encoder.json` that says so beside an adapter."""

import json
from dataclasses import dataclass
from pathlib import Path

from sempa_mlx.encoder.methods import METHODS
from sempa_mlx.errors import ModelError, Problem

SETTINGS_FILE = "encoder.json"
_STORED = {  # JSON types of the settings in `encoder.json`
    "method": str,
    "max_tokens": int,
    "normalize": bool,
    "truncate_dim": int | None,
    "adapter_scale": int | float,
}


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """How vectors are made; saved beside the adapter as `encoder.json`."""

    method: str = "prompteol"
    max_tokens: int = 512
    normalize: bool = True
    truncate_dim: int | None = None
    adapter_scale: float = 1.0


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
        wrong = [name for name, kind in _STORED.items() if not isinstance(stored[name], kind)]
        if wrong:
            raise TypeError(f"wrong type: {', '.join(wrong)}")
        settings = EncoderSettings(**{name: stored[name] for name in _STORED})
        expected = METHODS[settings.method].template.fingerprint
        found = stored["template"]["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(Problem(f"not an encoder file ({error!r})", str(path))) from error
    if found != expected:
        raise ModelError(
            Problem("made with another version of its template", str(path), fix="train again")
        )
    return settings
