"""Parameters that were tuned for a model, in a file that later commands read.

The file is for one base model. It holds one entry for each method, adapter and scale: what was
found, what was tried, and on which pairs.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.interventions import Parameters
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.files import write_text
from sempa_mlx.model.lora import adapter_fingerprint

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """Parameters that were tried, and their Spearman on dev pairs in [-1, 1]; NaN if undefined."""

    parameters: Parameters
    spearman: float

    def describe(self) -> dict[str, Any]:
        """Return the trial as JSON holds it, Spearman x 100."""
        defined = self.spearman == self.spearman  # JSON knows no NaN
        score = round(self.spearman * 100, 4) if defined else None
        return {**asdict(self.parameters), "spearman": score}


@dataclass(frozen=True, slots=True)
class Tuning:
    """What tuning found: the best trial, the one with default parameters, and all of them."""

    best: Trial
    default: Trial
    tried: tuple[Trial, ...]
    pairs: int
    pairs_digest: str


def write_tuning(path: Path, encoder: Encoder, tuning: Tuning) -> None:
    """Add what was found for an encoder to a file, in the place of what it held for it before.

    Raises:
        ModelError: the file is no such file, or belongs to another model.
        ResourceError: it cannot be written.
    """
    entries = check_target(path, encoder)
    system = _system(encoder)
    kept = [entry for entry in entries if not system.items() <= entry.items()]
    entry = {
        **system,
        **tuning.best.describe(),
        "default": tuning.default.describe(),
        "dev_pairs": tuning.pairs,
        "dev_pairs_digest": tuning.pairs_digest,
        "tried": [trial.describe() for trial in tuning.tried],
    }
    location = encoder.loaded.location
    model = {
        "name": location.reference,
        "revision": location.revision,
        "fingerprint": encoder.loaded.fingerprint,
        "setup": encoder.loaded.setup,
    }
    document = {"format": FORMAT, "model": model, "tuned": [*kept, entry]}
    write_text(path, json.dumps(document, indent=1) + "\n")


def check_target(path: Path, encoder: Encoder) -> Sequence[dict[str, Any]]:
    """Make sure that results for an encoder may go into a file; return what it holds.

    Raises:
        ModelError: the file is there and is no such file, or belongs to another model.
    """
    return _entries(path, encoder) if path.exists() else []


def with_tuned(encoder: Encoder, path: Path) -> Encoder | None:
    """Return the encoder with the parameters that a file holds for it; None if it has none.

    Raises:
        ModelError: the file is no such file, or belongs to another model.
    """
    system = _system(encoder)
    for entry in _entries(path, encoder):
        if system.items() <= entry.items():
            found = {name: entry[name] for name in ("layer", "block", "strength")}
            return Encoder(encoder.loaded, replace(encoder.settings, **found))
    return None


def _system(encoder: Encoder) -> dict[str, Any]:
    """Return what an entry is for, beside the base model."""
    scale = encoder.settings.adapter_scale
    adapter = adapter_fingerprint(encoder.loaded.model) if scale else None
    method = encoder.method.name
    return {"method": method, "adapter": adapter, "adapter_scale": scale if adapter else 0.0}


def _entries(path: Path, encoder: Encoder) -> Sequence[dict[str, Any]]:
    """Read the entries of a file that belongs to the encoder's base model."""
    if not path.is_file():
        fix = f"tune first: sempa-mlx eval sts --tune --tuned {path}"
        raise ModelError(Problem("no such file", str(path), fix=fix))
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}")
        model, entries = document["model"], document["tuned"]
        base, name = model["fingerprint"], model["name"]
        for entry in entries:
            _check_entry(entry)
    except (ValueError, KeyError, TypeError) as error:
        what = f"not a file of tuned parameters ({error!r})"
        raise ModelError(Problem(what, str(path), fix="tune anew into another file")) from error
    if base != encoder.loaded.fingerprint or model.get("setup") not in (None, encoder.loaded.setup):
        given = f"`{encoder.loaded.location.name}` ({encoder.loaded.fingerprint})"
        what = f"tuned for another model: `{name}` ({base}), not {given}"
        raise ModelError(Problem(what, str(path), fix="tune this model into a file of its own"))
    return list(entries)


def _check_entry(entry: dict[str, Any]) -> None:
    kinds = {
        "method": str,
        "adapter": str | None,
        "adapter_scale": float | int,
        "layer": int,
        "block": int | None,
        "strength": float | int | None,
    }
    wrong = [name for name, kind in kinds.items() if not isinstance(entry[name], kind)]
    if wrong:
        raise TypeError(f"wrong type: {', '.join(wrong)}")
