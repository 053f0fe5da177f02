"""Sparse codes on disk, in compressed rows, with the texts and with what made them.

`.npz` and `.safetensors` hold the same arrays, which need no pickle:

- `indptr` (n + 1,) int64, `indices` (values,) uint16 or, of more than 65,536 latents, uint32,
  `values` (values,) float16, `shape` (2,) int64: compressed rows, latents in order;
- `text` uint8, the texts in UTF-8 one after the other, and `text_ends` (n,) int64, where each ends,
  if the texts are kept;
- the header, JSON: `header` uint8 in `.npz`, metadata under `sempa_codes` in `.safetensors`; it
  also stands beside the file as `FILE.json`.

All of it lies in memory while it is written or read; the dense vectors never do.
"""

import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sempa_mlx.encoder import npz_file, safetensors_file
from sempa_mlx.encoder.mapped_array import DAMAGED, plain_errors
from sempa_mlx.encoder.vector_form import sidecar_path
from sempa_mlx.errors import DataError, Problem
from sempa_mlx.files import json_text, replacing_together

if TYPE_CHECKING:
    from scipy.sparse import csr_array

FORMS = ("npz", "safetensors")
FORMAT = "1"
NARROW = 1 << 16  # latents that uint16 can tell apart
_KEY = "sempa_codes"


@dataclass(frozen=True, slots=True)
class SparseStore:
    """Codes of texts, a row each.

    Attributes:
        codes: (n, latents) float32 in compressed rows, latents in order.
        about: what made them; a file adds its format, `count`, `latents` and a digest.
        texts: of the rows, or None if they are not kept.
    """

    codes: "csr_array" = field(repr=False)
    about: dict[str, Any]
    texts: tuple[str, ...] | None = field(default=None, repr=False)


def at_half_precision(codes: "csr_array") -> "csr_array":
    """Round codes to values that float16 holds; what becomes 0 (up to 2**-25) is left out.

    Returns:
        (n, latents) float32, indices in order.

    Raises:
        DataError: a value is not finite or beyond 65504, float16's largest.
    """
    found = codes.astype(np.float32)
    found.sum_duplicates()
    with np.errstate(over="ignore"):
        values = found.data.astype(np.float16)
    faulty = np.flatnonzero(~np.isfinite(values))
    if len(faulty):
        what = f"{len(faulty)} values of codes are not finite, or beyond the 65504 of float16"
        raise DataError(Problem(what, evidence=f"the first is {found.data[faulty[0]]:g}"))
    found.data = values.astype(np.float32)
    found.eliminate_zeros()
    return found


def write_store(path: Path, store: SparseStore, file_format: str) -> Path:
    """Write codes as `npz` or `safetensors`; return the sidecar.

    Raises:
        DataError: a value does not fit into float16; nothing is written.
        ResourceError: it cannot be written; what was there stays.
    """
    from safetensors.numpy import save

    arrays = _arrays(store)
    count, latents = store.codes.shape
    facts = {"format": FORMAT, "count": count, "latents": latents, "digest": _digest(arrays)}
    header = json_text({**store.about, **facts})
    sidecar = sidecar_path(path)
    with replacing_together(path, sidecar) as (temporary, about):
        if file_format == "npz":
            with temporary.open("wb") as handle:
                np.savez(handle, allow_pickle=False, header=_bytes(header), **arrays)
        else:
            # `save_file` would leave it readable by its owner alone.
            temporary.write_bytes(save(arrays, metadata={_KEY: header}))
        about.write_text(header, encoding="utf-8")
    return sidecar


def read_store(path: Path) -> SparseStore:
    """Read what `write_store` wrote.

    Raises:
        DataError: there is no such file, it is not whole, or holds something else.
    """
    if not path.is_file():
        fix = f"embed a file: sempa-mlx embed FILE --sparse CODER -o {path}"
        raise DataError(Problem("no such file", str(path), fix=fix))
    # MemoryError: an array says that it is longer than any memory.
    try:
        arrays, header = _read_npz(path) if _is_zip(path) else _read_safetensors(path)
        about = json.loads(header)
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']}")
        if about["digest"] != _digest(arrays):
            raise ValueError("its content is not what was written")
        return SparseStore(_codes(arrays), about, _texts(arrays))
    except (*DAMAGED, TypeError, MemoryError) as error:
        raise DataError(Problem(f"not a store of codes ({error})", str(path))) from error


def holds_codes(path: Path) -> bool:
    """Tell a `.npz` or `.safetensors` of codes from one of vectors; other endings hold no codes.

    Raises:
        DataError: there is no such file, or it is not whole.
    """
    if path.suffix.removeprefix(".") not in FORMS:
        return False
    if not path.is_file():
        fix = f"embed a file: sempa-mlx embed FILE -o {path}"
        raise DataError(Problem("no such file", str(path), fix=fix))
    try:
        return not (npz_file if _is_zip(path) else safetensors_file).holds_vectors(path)
    except DAMAGED as error:
        what = f"neither vectors nor codes ({error})"
        raise DataError(Problem(what, str(path), fix="embed the file again")) from error


def _arrays(store: SparseStore) -> dict[str, np.ndarray]:
    codes = at_half_precision(store.codes)
    narrow = np.uint16 if codes.shape[1] <= NARROW else np.uint32
    arrays = {
        "indptr": codes.indptr.astype(np.int64),
        "indices": codes.indices.astype(narrow),
        "values": codes.data.astype(np.float16),
        "shape": np.array(codes.shape, dtype=np.int64),
    }
    if store.texts is not None:
        if len(store.texts) != codes.shape[0]:
            raise ValueError(f"{len(store.texts)} texts of {codes.shape[0]} codes")
        encoded = [text.encode() for text in store.texts]
        arrays["text"] = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        arrays["text_ends"] = np.cumsum([len(each) for each in encoded], dtype=np.int64)
    return arrays


def _codes(arrays: dict[str, np.ndarray]) -> "csr_array":
    from scipy.sparse import csr_array

    count, latents = arrays["shape"].tolist()
    parts = (arrays["values"].astype(np.float32), arrays["indices"].astype(np.int32))
    codes = csr_array((*parts, arrays["indptr"]), shape=(count, latents))
    codes.check_format(full_check=True)
    return codes


def _texts(arrays: dict[str, np.ndarray]) -> tuple[str, ...] | None:
    if "text" not in arrays:
        return None
    blob, ends = arrays["text"].tobytes(), arrays["text_ends"].tolist()
    return tuple(
        blob[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=False)
    )


def _is_zip(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(2) == b"PK"


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], str]:
    # Opened here: numpy leaves the file open when it is no zip file.
    with plain_errors(), path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
        if any(part.compress_type != zipfile.ZIP_STORED for part in file.zip.infolist()):
            raise ValueError("its parts are compressed, which no store's are")  # may blow up
        arrays = dict(file)
    return arrays, arrays.pop("header").tobytes().decode()


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], str]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        header = (file.metadata() or {})[_KEY]
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Return 16 hex digits of the arrays' names, types and values."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:16]
