"""Vectors as `.safetensors`: a header of JSON, then the bytes of `embeddings` and of `ids`.

The header comes first but names the count, so room is left for it, which blanks fill: the format
allows them after the JSON.
"""

import json
import shutil
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sempa_mlx.encoder.line_ids import ID_BYTES
from sempa_mlx.encoder.npy_file import as_bytes
from sempa_mlx.encoder.vector_form import EMBEDDINGS, IDS, KEY, Header, Window

_LENGTH = struct.Struct("<Q")
_DIGITS = 128  # more than six numbers grow by: two shapes, three offsets, the count
_ALIGNED = 64
_DTYPES = {"F32": np.float32, "U8": np.uint8}


def write_safetensors(path: Path, windows: Iterable[Window], dim: int, header: Header) -> None:
    """Write the tensors `embeddings` and `ids`, and the metadata `sempa_vectors`.

    Args:
        path: of the file.
        windows: read once; the bytes of their vectors go straight to their place.
        dim: of the vectors.
        header: called when all windows went by, and before to see how long it is.
    """
    count = 0
    start = _LENGTH.size + len(_head(0, dim, header())) + _DIGITS
    start += -start % _ALIGNED
    with path.open("wb") as file, tempfile.TemporaryFile(dir=path.parent) as ids:
        file.write(b" " * start)
        for window in windows:
            file.write(as_bytes(window.vectors))
            ids.write(window.ids.tobytes())
            count += len(window.texts)
        ids.seek(0)
        shutil.copyfileobj(ids, file, 1 << 20)
        head = _head(count, dim, header())
        room = start - _LENGTH.size
        if len(head) > room:
            raise RuntimeError("the header outgrew its room")
        file.seek(0)
        file.write(_LENGTH.pack(room) + head)


def _head(count: int, dim: int, about: str) -> bytes:
    end = count * dim * 4
    vectors = {"dtype": "F32", "shape": [count, dim], "data_offsets": [0, end]}
    offsets = [end, end + count * ID_BYTES]
    ids = {"dtype": "U8", "shape": [count, ID_BYTES], "data_offsets": offsets}
    return json.dumps({"__metadata__": {KEY: about}, EMBEDDINGS: vectors, IDS: ids}).encode()


def read_safetensors(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Map vectors (n, dim) float32 and hashes (n, 16) uint8, and read the header.

    Raises:
        ValueError, KeyError, OSError, SafetensorError: it is something else, or not whole.
    """
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:  # looks for holes and missing bytes
        about = (file.metadata() or {})[KEY]
    with path.open("rb") as handle:
        (length,) = _LENGTH.unpack(handle.read(_LENGTH.size))
        tensors = json.loads(handle.read(length))
    start = _LENGTH.size + length
    return (*(_mapped(path, start, tensors[name]) for name in (EMBEDDINGS, IDS)), about)


def holds_vectors(path: Path) -> bool:
    """Tell whether a file has vectors in it; raises as `read_safetensors`."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return KEY in (file.metadata() or {})


def _mapped(path: Path, start: int, tensor: dict[str, Any]) -> np.ndarray:
    shape, dtype = tuple(tensor["shape"]), _DTYPES[tensor["dtype"]]
    if not np.prod(shape):
        return np.empty(shape, dtype)  # there may be no byte left to map
    return np.memmap(path, dtype, "r", start + tensor["data_offsets"][0], shape)
