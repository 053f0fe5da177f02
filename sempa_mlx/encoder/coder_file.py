"""A sparse coder on disk: one safetensors file that says what it codes.

The atoms of a lexical coder are the model's output matrix and stay with the model; the file names
the model by its fingerprint.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from sempa_mlx.encoder.sparse import KINDS, SparseCoder
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.files import replacing

CODER_FILE = "coder.safetensors"
FORMAT = "1"
_KEY = "sempa_coder"


def write_coder(path: Path, coder: SparseCoder) -> None:
    """Write a coder.

    Raises:
        ResourceError: it cannot be written; what was there stays.
    """
    from safetensors.numpy import save_file

    about = {"format": FORMAT, **identify(coder)}
    with replacing(path) as temporary:
        save_file(_arrays(coder), temporary, metadata={_KEY: json.dumps(about)})


def identify(coder: SparseCoder) -> dict[str, Any]:
    """Return what tells a coder from others: its description, and a digest of what it learned."""
    return {**coder.describe(), "digest": _digest(_arrays(coder))}


def coder_place(path: Path) -> Path:
    """Return the file of a coder: `path` itself, or the one in the run folder `path`.

    Raises:
        ModelError: there is none.
    """
    place = path / CODER_FILE if path.is_dir() else path
    if not place.is_file():
        fix = "fit one: sempa-mlx sparse fit --data FILE --out CODER.safetensors"
        raise ModelError(Problem("no such coder", str(place), fix=fix))
    return place


def describe_coder(path: Path) -> dict[str, Any]:
    """Return what a coder's file, or that in a run folder, says of it, as `identify` does.

    Raises:
        ModelError: there is no such file, or it is something else.
    """
    from safetensors import SafetensorError, safe_open

    place = coder_place(path)
    try:
        with safe_open(place, framework="numpy") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
        if about["format"] != FORMAT or about["kind"] not in KINDS:
            raise ValueError(f"format {about['format']}, kind {about['kind']}")
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise ModelError(Problem(f"not a sparse coder ({error})", str(place))) from error
    return about


def read_coder(path: Path, output_matrix: np.ndarray | None = None) -> SparseCoder:
    """Read a coder.

    Args:
        path: of the file, or of a run folder that holds one.
        output_matrix: (vocabulary, dim) float32 of the model, which a lexical coder needs.

    Raises:
        ModelError: there is no such file, it is not whole, or belongs to another model.
    """
    from safetensors import SafetensorError, safe_open

    place = coder_place(path)
    about = describe_coder(place)
    try:
        with safe_open(place, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["digest"] != _digest(arrays):
            raise ValueError("its content is not what was written")
        coder = _assembled(about, arrays, output_matrix)
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise ModelError(Problem(f"not a sparse coder ({error})", str(place))) from error
    if coder.atoms.shape != (about["hidden"], about["dim"]):
        what = f"a lexical coder of {about['hidden']} tokens of {about['dim']} numbers"
        found = f"the model has {coder.hidden} of {coder.dim}"
        raise ModelError(Problem(what, str(place), found, "fit one to this model"))
    return coder


def _arrays(coder: SparseCoder) -> dict[str, np.ndarray]:
    arrays = {"centre": coder.centre}
    if coder.kind != "lexical":
        arrays |= {"atoms": coder.atoms, "bias": coder.bias}
    return arrays


def _assembled(
    about: dict[str, float | int | str],
    arrays: dict[str, np.ndarray],
    output_matrix: np.ndarray | None,
) -> SparseCoder:
    if about["kind"] == "lexical":
        if output_matrix is None:
            raise ValueError("a lexical one, which works with its model only")
        atoms, bias = output_matrix, np.zeros(len(output_matrix), dtype=np.float32)
    else:
        atoms, bias = arrays["atoms"], arrays["bias"]
    return SparseCoder(
        about["kind"],  # type: ignore[arg-type]  # checked by the caller
        int(about["k"]),
        str(about["vectors"]),
        int(about["num_texts"]),
        float(about["penalty"]),
        float(about["gain"]),
        float(about["scale"]),
        arrays["centre"],
        atoms,
        bias,
    )


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Return 16 hex digits of the arrays' names and values."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(name.encode() + np.ascontiguousarray(array, dtype="<f4").tobytes())
    return found.hexdigest()[:16]
