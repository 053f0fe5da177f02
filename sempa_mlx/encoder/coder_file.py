"""A sparse coder on disk: one safetensors file that says what it codes.

The atoms of a lexical coder are the model's output matrix and stay with the model; the file names
the model by its fingerprint.
"""

import hashlib
import json
from pathlib import Path

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

    arrays = {"centre": coder.centre}
    if coder.kind != "lexical":
        arrays |= {"atoms": coder.atoms, "bias": coder.bias}
    about = {"format": FORMAT, **coder.describe(), "digest": _digest(arrays)}
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata={_KEY: json.dumps(about)})


def read_coder(path: Path, output_matrix: np.ndarray | None = None) -> SparseCoder:
    """Read a coder.

    Args:
        path: of the file, or of a run folder that holds one.
        output_matrix: (vocabulary, dim) float32 of the model, which a lexical coder needs.

    Raises:
        ModelError: there is no such file, it is not whole, or belongs to another model.
    """
    from safetensors import SafetensorError, safe_open

    place = path / CODER_FILE if path.is_dir() else path
    if not place.is_file():
        fix = "fit one: sempa-mlx sparse fit --data FILE --out CODER.safetensors"
        raise ModelError(Problem("no such coder", str(place), fix=fix))
    try:
        with safe_open(place, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["format"] != FORMAT or about["kind"] not in KINDS:
            raise ValueError(f"format {about['format']}, kind {about['kind']}")
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
