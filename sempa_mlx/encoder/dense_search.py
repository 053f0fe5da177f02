"""Search in vectors on disk: every row is compared, none is read twice for a block of queries."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sempa_mlx.encoder.postprocess import at_unit_length
from sempa_mlx.encoder.ranking import Hits, nearest_rows
from sempa_mlx.encoder.store import sidecar_path
from sempa_mlx.errors import DataError, Problem

BLOCK_VALUES = 1 << 24  # cosines of one block of queries: 64 MiB


@dataclass(frozen=True, slots=True)
class DenseStore:
    """Vectors of texts, one a line of the file they were made of.

    Attributes:
        vectors: (n, dim) float32 of unit length; mapped from disk if they are so there.
        about: what made them (`reopen.origin`).
        place: the file that says so.
    """

    vectors: np.ndarray = field(repr=False)
    about: dict[str, Any]
    place: Path

    def search(self, queries: np.ndarray, k: int) -> list[Hits]:
        """Return the k rows nearest to each query by cosine, ties by row.

        Args:
            queries: (q, dim) float32 of unit length.
            k: rows of each; all if there are fewer.

        Raises:
            DataError: vectors of the store hold NaN or infinity.
        """
        found = []
        rows = max(1, BLOCK_VALUES // max(1, len(self.vectors)))
        for start in range(0, len(queries), rows):
            cosines = queries[start : start + rows] @ self.vectors.T
            if not np.isfinite(cosines).all():
                count = int((~np.isfinite(cosines)).any(axis=0).sum())
                what = f"{count} of {len(self.vectors)} vectors hold NaN or infinity"
                raise DataError(Problem(what, str(self.place), fix="embed the file again"))
            found += [
                nearest_rows(self.vectors, query, row, k)
                for query, row in zip(queries[start:], cosines, strict=False)
            ]
        return found


def read_dense(path: Path) -> DenseStore:
    """Open what `embed_to_file` wrote as npy.

    Raises:
        DataError: there is no such file, it is not whole, or nothing beside it says what made it.
    """
    beside = sidecar_path(path)
    for part in (path, beside):
        if not part.is_file():
            fix = f"embed a file: sempa-mlx embed FILE -o {path}"
            raise DataError(Problem("no such file", str(part), fix=fix))
    try:
        vectors = np.lib.format.open_memmap(path, mode="r")
        if vectors.ndim != 2 or vectors.dtype != np.float32:
            raise ValueError("no matrix of float32")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(Problem(f"not a file of vectors ({error})", str(path))) from error
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        said, normalize = (about["count"], about["dim"]), about["normalize"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        what = f"does not say what made {path.name} ({error!r})"
        raise DataError(Problem(what, str(beside), fix="embed again")) from error
    if said != vectors.shape:
        what = f"belongs to {said[0]} vectors of {said[1]} numbers"
        found = f"{path.name} has {vectors.shape[0]} of {vectors.shape[1]}"
        raise DataError(Problem(what, str(beside), found, "embed again"))
    return DenseStore(vectors if normalize else at_unit_length(vectors), about, beside)
