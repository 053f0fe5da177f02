"""Vectors as `.npy`, which grows as it is written and is mapped when it is read."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sempa_mlx.encoder.line_ids import ID_BYTES
from sempa_mlx.encoder.mapped_array import map_array
from sempa_mlx.encoder.vector_form import Window


def write_npy(path: Path, ids: Path, windows: Iterable[Window], dim: int) -> None:
    """Write two growing arrays: the vectors, and the hashes of their lines.

    numpy pads its header, so the final count fits over the first one.
    """
    count = 0
    with path.open("wb") as vectors, ids.open("wb") as hashes:
        vectors.write(npy_header("<f4", 0, dim))
        hashes.write(npy_header("|u1", 0, ID_BYTES))
        starts = vectors.tell(), hashes.tell()
        for window in windows:
            vectors.write(as_bytes(window.vectors))
            hashes.write(window.ids.tobytes())
            count += len(window.texts)
        vectors.seek(0)
        vectors.write(npy_header("<f4", count, dim))
        hashes.seek(0)
        hashes.write(npy_header("|u1", count, ID_BYTES))
        if (vectors.tell(), hashes.tell()) != starts:
            raise RuntimeError("numpy changed the length of its header")


def read_npy(path: Path) -> np.ndarray:
    """Map what `write_npy` wrote, (n, dim) float32.

    Raises:
        ValueError, OSError, EOFError: it is something else, or not whole.
    """
    vectors = map_array(path)
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise ValueError("no matrix of float32")
    return vectors


def npy_header(kind: str, *shape: int) -> bytes:
    """Return what stands before the numbers of an array; its length does not depend on rows."""
    found = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(found, header)
    return found.getvalue()


def as_bytes(vectors: np.ndarray) -> bytes:
    """Return vectors as little-endian float32, row by row."""
    return np.ascontiguousarray(vectors, dtype="<f4").tobytes()
