"""Rows of text formats, put into temporary files so that they can be mapped like the others.

The files have no name: they go when nothing maps them any more.
"""

import tempfile
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from sempa_mlx.disk import writing
from sempa_mlx.encoder.line_ids import ID_BYTES, line_ids
from sempa_mlx.encoder.npy_file import as_bytes
from sempa_mlx.encoder.text_files import Rows


class SpooledTexts:
    """Texts by their row."""

    def __init__(self, content: np.ndarray, ends: "array[int]") -> None:
        """Take texts in UTF-8, one after the other, and where each ends; the first end is 0."""
        self._content = content
        self._ends = ends

    def __getitem__(self, row: int) -> str:
        """Return the text of a row."""
        return self._content[self._ends[row] : self._ends[row + 1]].tobytes().decode()


@dataclass(frozen=True, slots=True)
class Spooled:
    """Vectors (n, dim) float32 and hashes (n, 16) uint8, mapped, and the texts."""

    vectors: np.ndarray = field(repr=False)
    ids: np.ndarray = field(repr=False)
    texts: SpooledTexts


def spool(rows: Rows, dim: int) -> Spooled:
    """Read rows into temporary files, which nothing else can see.

    Args:
        rows: of texts and vectors; read once.
        dim: of the vectors.

    Raises:
        ResourceError: the disk with temporary files is full.
        RunError: that disk is broken.
    """
    place = Path(tempfile.gettempdir())
    ends = array("q", [0])
    with (
        tempfile.TemporaryFile() as vectors,
        tempfile.TemporaryFile() as ids,
        tempfile.TemporaryFile() as texts,
    ):
        for some, block in rows:
            encoded = [text.encode() for text in some]
            parts = (as_bytes(block), line_ids(some).tobytes(), b"".join(encoded))
            with writing(place):
                for file, content in zip((vectors, ids, texts), parts, strict=True):
                    file.write(content)
                    file.flush()
            for each in encoded:
                ends.append(ends[-1] + len(each))
        count = len(ends) - 1
        return Spooled(
            _mapped(vectors, np.dtype("<f4"), (count, dim)),
            _mapped(ids, np.dtype(np.uint8), (count, ID_BYTES)),
            SpooledTexts(_mapped(texts, np.dtype(np.uint8), (ends[-1],)), ends),
        )


def _mapped(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if not shape[0]:
        return np.empty(shape, dtype)  # no file of no bytes can be mapped
    return np.memmap(file, dtype, "r", shape=shape)
