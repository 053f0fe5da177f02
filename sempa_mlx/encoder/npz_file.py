"""Vectors as `.npz`: a zip file of `.npy` members, none compressed, so that they can be mapped.

A member's size and check sum stand before and after its bytes, so vectors and hashes are put into
temporary files first: memory does not grow, but the disk holds the vectors twice for a moment.
"""

import io
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from sempa_mlx.encoder.line_ids import ID_BYTES
from sempa_mlx.encoder.mapped_array import plain_errors
from sempa_mlx.encoder.npy_file import as_bytes, npy_header
from sempa_mlx.encoder.vector_form import EMBEDDINGS, HEADER, IDS, Header, Window

_NAME_LENGTHS = 26  # bytes into a member's own header: the lengths of name and extra field


def write_npz(path: Path, windows: Iterable[Window], dim: int, header: Header) -> None:
    """Write the members `embeddings`, `ids` and `header`.

    Args:
        path: of the file.
        windows: read once.
        dim: of the vectors.
        header: called when all windows went by.
    """
    count = 0
    with (
        tempfile.TemporaryFile(dir=path.parent) as vectors,
        tempfile.TemporaryFile(dir=path.parent) as ids,
    ):
        for window in windows:
            vectors.write(as_bytes(window.vectors))
            ids.write(window.ids.tobytes())
            count += len(window.texts)
        about = header().encode()
        with ZipFile(path, "w") as file:
            _add(file, EMBEDDINGS, npy_header("<f4", count, dim), vectors)
            _add(file, IDS, npy_header("|u1", count, ID_BYTES), ids)
            _add(file, HEADER, npy_header("|u1", len(about)), io.BytesIO(about))


def _add(file: ZipFile, name: str, head: bytes, body: IO[bytes]) -> None:
    body.seek(0)
    # With this name and the 20 bytes of zip64, the numbers of the first member start at a multiple
    # of 64, as numpy likes them.
    with file.open(ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        member.write(head)
        shutil.copyfileobj(body, member, 1 << 20)


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Map vectors (n, dim) float32 and hashes (n, 16) uint8, and read the header.

    Raises:
        ValueError, KeyError, OSError, EOFError, BadZipFile, struct.error: it is something else, or
            not whole.
    """
    with ZipFile(path) as file:
        vectors = _mapped(path, file.getinfo(f"{EMBEDDINGS}.npy"), np.dtype(np.float32))
        ids = _mapped(path, file.getinfo(f"{IDS}.npy"), np.dtype(np.uint8))
        with plain_errors(), file.open(f"{HEADER}.npy") as member:
            about = np.lib.format.read_array(member, allow_pickle=False)
    return vectors, ids, about.tobytes().decode()


def holds_vectors(path: Path) -> bool:
    """Tell whether a zip file has vectors in it; raises as `read_npz`."""
    with ZipFile(path) as file:
        return f"{EMBEDDINGS}.npy" in file.namelist()


def _mapped(path: Path, member: ZipInfo, expected: np.dtype) -> np.ndarray:
    if member.compress_type != ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    with path.open("rb") as handle, plain_errors():
        handle.seek(member.header_offset + _NAME_LENGTHS)
        lengths = struct.unpack("<HH", handle.read(4))
        handle.seek(sum(lengths), os.SEEK_CUR)
        if np.lib.format.read_magic(handle) != (1, 0):
            raise ValueError("of another version of .npy")
        shape, in_columns, dtype = np.lib.format.read_array_header_1_0(handle)
        start = handle.tell()
    if len(shape) != 2 or dtype != expected or in_columns:
        raise ValueError(f"{member.filename} is no matrix of {expected}")
    with plain_errors():
        return np.memmap(path, dtype, "r", start, shape)
