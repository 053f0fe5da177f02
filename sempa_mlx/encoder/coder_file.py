"""A sparse coder on disk: one safetensors file that says what it codes.

The atoms of a lexical coder are the model's output matrix and stay with the model; the file names
the model by its fingerprint.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sempa_mlx.encoder.sparse import KINDS, SparseCoder
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.files import replacing

CODER_FILE = "coder.safetensors"
FORMAT = "1"
_KEY, _EXAMPLES = "sempa_coder", "examples"


OutputMatrix = Callable[[], np.ndarray]
Examples = Mapping[int, Sequence[str]]  # of some latents: texts that fire them, strongest first


def write_coder(path: Path, coder: SparseCoder, examples: Examples | None = None) -> None:
    """Write a coder, and texts that show what its latents mean.

    Raises:
        ResourceError: it cannot be written; what was there stays.
    """
    from safetensors.numpy import save

    arrays = _arrays(coder)
    if examples:
        shown = json.dumps({str(latent): list(texts) for latent, texts in examples.items()})
        arrays[_EXAMPLES] = np.frombuffer(shown.encode(), dtype=np.uint8)
    about = {"format": FORMAT, **identify(coder)}
    with replacing(path) as temporary:
        # Bytes, not safetensors' own file: that one only its owner could read.
        temporary.write_bytes(save(arrays, metadata={_KEY: json.dumps(about)}))


def identify(coder: SparseCoder) -> dict[str, Any]:
    """Return what tells a coder from others: its description, and a digest of what it learned."""
    return {**coder.describe(), "digest": _digest(_arrays(coder))}


def read_coder(path: Path, output_matrix: OutputMatrix | None = None) -> SparseCoder:
    """Read a coder.

    Args:
        path: of the file, or of a run folder that holds one.
        output_matrix: returns the model's, (vocabulary, dim) float32, which a lexical coder needs.

    Raises:
        ModelError: there is no such file, it is not whole, or belongs to another model.
    """
    about = describe_coder(path)
    place = coder_place(path)
    arrays = _tensors(place)
    if about.get("digest") != _digest(arrays):
        raise ModelError(Problem("the coder is damaged", str(place), fix="fit it anew"))
    try:
        coder = _assembled(about, arrays, output_matrix)
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(Problem(f"not a sparse coder ({error})", str(place))) from error
    if coder.atoms.shape != (about["hidden"], about["dim"]):
        what = f"a lexical coder of {about['hidden']} tokens of {about['dim']} numbers"
        found = f"the model has {coder.hidden} of {coder.dim}"
        raise ModelError(Problem(what, str(place), found, "fit one to this model"))
    return coder


def describe_coder(path: Path) -> dict[str, Any]:
    """Read what a coder's file says of it (`SparseCoder.describe`), without its weights.

    Raises:
        ModelError: there is no such file, or it is no coder.
    """
    from safetensors import SafetensorError, safe_open

    place = coder_place(path)
    try:
        with safe_open(place, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[_KEY])
        if about["format"] != FORMAT or about["kind"] not in KINDS:
            raise ValueError(f"format {about['format']}, kind {about['kind']}")
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise ModelError(Problem(f"not a sparse coder ({error})", str(place))) from error
    return dict(about)


def read_examples(path: Path) -> dict[int, tuple[str, ...]]:
    """Read the texts that show what latents mean, from a coder's file that `read_coder` takes.

    Raises:
        ModelError: they are damaged.
    """
    place = coder_place(path)
    found = _tensors(place, examples=True).get(_EXAMPLES)
    if found is None:
        return {}
    try:
        return {int(latent): tuple(texts) for latent, texts in json.loads(found.tobytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(Problem("its examples are damaged", str(place))) from error


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


def _tensors(place: Path, *, examples: bool = False) -> dict[str, np.ndarray]:
    """Read the arrays of a file whose header is sound: those of the coder, or its examples."""
    from safetensors import safe_open

    with safe_open(place, framework="numpy") as file:
        names = [name for name in file.keys() if (name == _EXAMPLES) == examples]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}


def _assembled(
    about: dict[str, Any],
    arrays: dict[str, np.ndarray],
    output_matrix: OutputMatrix | None,
) -> SparseCoder:
    if about["kind"] == "lexical":
        if output_matrix is None:
            raise ValueError("a lexical one, which works with its model only")
        atoms = output_matrix()
        bias = np.zeros(len(atoms), dtype=np.float32)
    else:
        atoms, bias = arrays["atoms"], arrays["bias"]
    return SparseCoder(
        about["kind"],
        int(about["k"]),
        str(about["vectors"]),
        int(about["num_texts"]),
        float(about["penalty"]),
        float(about["gain"]),
        arrays["centre"],
        arrays["scale"],
        atoms,
        bias,
    )


def _arrays(coder: SparseCoder) -> dict[str, np.ndarray]:
    """Return what a coder learned; the atoms of a lexical one stay with the model."""
    learned = {"centre": coder.centre, "scale": coder.scale}
    return (
        learned if coder.kind == "lexical" else learned | {"atoms": coder.atoms, "bias": coder.bias}
    )


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Return 16 hex digits of the arrays' names and values."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(name.encode() + np.ascontiguousarray(array, dtype="<f4").tobytes())
    return found.hexdigest()[:16]
