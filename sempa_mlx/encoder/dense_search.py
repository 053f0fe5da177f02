"""Search in vectors on disk: every row is compared, block by block, and none stays in memory."""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.line_ids import read_ids
from sempa_mlx.encoder.postprocess import at_unit_length
from sempa_mlx.encoder.ranking import Hits, nearest_rows
from sempa_mlx.encoder.reopen import origin
from sempa_mlx.encoder.store import KnownLines, sidecar_path
from sempa_mlx.errors import DataError, Problem, UsageError

MADE_OF = ("vectors", "dtype", "normalize", "truncate_dim", "post")  # what vectors depend on
BLOCK_BYTES = 1 << 25  # of rows read together, and of their cosines


@dataclass(frozen=True, slots=True)
class DenseStore:
    """Vectors of texts, one a line of the file they were made of.

    Attributes:
        vectors: (n, dim) float32; mapped from disk.
        about: what made them (`reopen.origin`).
        place: the file that says so.
    """

    vectors: np.ndarray = field(repr=False)
    about: dict[str, Any]
    place: Path

    def search(self, queries: np.ndarray, k: int) -> list[Hits]:
        """Return the k rows nearest to each query by cosine, ties by row.

        Rows are read once for all queries; memory does not grow with their number.

        Args:
            queries: (q, dim) float32 of unit length.
            k: rows of each; all if there are fewer.

        Raises:
            DataError: vectors of the store hold NaN or infinity.
        """
        found: list[Hits] = [[] for _ in queries]
        num_faulty = 0
        width = max(self.vectors.shape[1], len(queries), 1)
        for start, rows in self.blocks(max(1, BLOCK_BYTES // (4 * width))):
            cosines = queries @ rows.T
            faulty = ~np.isfinite(rows).all(axis=1) if not np.isfinite(cosines).all() else ()
            num_faulty += int(np.sum(faulty))
            if num_faulty:
                continue
            for index, query in enumerate(queries):
                hits = nearest_rows(rows, query, cosines[index], k)
                both = found[index] + [(start + row, score) for row, score in hits]
                found[index] = sorted(both, key=lambda hit: (-hit[1], hit[0]))[:k]
        if num_faulty:
            what = f"{num_faulty} of {len(self.vectors)} vectors hold NaN or infinity"
            raise DataError(Problem(what, str(self.place), fix="embed the file again"))
        return found

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield first row and rows of unit length, `size` at a time; let go of what was read."""
        for start in range(0, len(self.vectors), size):
            rows = self.vectors[start : start + size]
            yield start, rows if self.about["normalize"] else at_unit_length(rows)
            let_go(self.vectors, start, start + len(rows))

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """Return some rows at unit length, (chosen, dim) float32."""
        found = np.array(self.vectors[chosen])
        let_go(self.vectors, 0, len(self.vectors))
        return found if self.about["normalize"] else at_unit_length(found)


def let_go(vectors: np.ndarray, start: int, stop: int) -> None:
    """Tell the system that mapped rows need not stay in this process's memory."""
    if not isinstance(vectors, np.memmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    mapped: mmap.mmap = vectors._mmap  # type: ignore[attr-defined]
    row = vectors.strides[0]
    first = (vectors.offset + start * row) // mmap.PAGESIZE * mmap.PAGESIZE
    length = min(vectors.offset + stop * row, len(mapped)) - first
    if length > 0:
        mapped.madvise(mmap.MADV_DONTNEED, first, length)


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
        with np.errstate(over="ignore"):  # a shape beyond any file, refused below
            vectors = np.lib.format.open_memmap(path, mode="r")
        if vectors.ndim != 2 or vectors.dtype != np.float32:
            raise ValueError("no matrix of float32")
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise DataError(Problem(f"not a file of vectors ({error})", str(path))) from error
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        said, _ = (about["count"], about["dim"]), about["normalize"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        what = f"does not say what made {path.name} ({error!r})"
        raise DataError(Problem(what, str(beside), fix="embed again")) from error
    if said != vectors.shape:
        what = f"belongs to {said[0]} vectors of {said[1]} numbers"
        found = f"{path.name} has {vectors.shape[0]} of {vectors.shape[1]}"
        raise DataError(Problem(what, str(beside), found, "embed again"))
    return DenseStore(vectors, about, beside)


def known_lines(encoder: Encoder, path: Path, adapter_path: Path | None) -> KnownLines:
    """Open an earlier file of vectors, so that its lines need not be embedded again.

    Raises:
        DataError: it is no such file, not whole, or has no hashes of its lines.
        UsageError: another encoder made it; everything that differs is named.
    """
    store = read_dense(path)
    now = origin(encoder, adapter_path)
    unlike = [name for name in MADE_OF if store.about.get(name) != now[name]]
    if unlike:
        raise UsageError(
            [
                Problem(f"{name}: {store.about.get(name)} there, {now[name]} now", str(store.place))
                for name in unlike
            ],
            state="its vectors cannot be kept; --force embeds all lines anew",
        )
    return KnownLines(store.vectors, read_ids(path, len(store.vectors)))
