"""Search in vectors on disk: every row is compared, block by block, and none stays in memory."""

import json
import mmap
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.line_ids import ID_BYTES, read_ids
from sempa_mlx.encoder.mapped_array import DAMAGED
from sempa_mlx.encoder.npy_file import read_npy
from sempa_mlx.encoder.npz_file import read_npz
from sempa_mlx.encoder.parquet_file import read_header, read_parquet
from sempa_mlx.encoder.postprocess import at_unit_length
from sempa_mlx.encoder.ranking import Hits, nearest_rows
from sempa_mlx.encoder.reopen import origin
from sempa_mlx.encoder.safetensors_file import read_safetensors
from sempa_mlx.encoder.spool import SpooledTexts, spool
from sempa_mlx.encoder.store import KnownLines
from sempa_mlx.encoder.text_files import read_csv, read_jsonl
from sempa_mlx.encoder.vector_form import format_of, sidecar_path
from sempa_mlx.errors import DataError, Problem, UsageError

MADE_OF = ("vectors", "dtype", "normalize", "truncate_dim", "post")  # what vectors depend on
INSIDE = ("npz", "safetensors", "parquet")  # formats that say themselves what made them
BLOCK_BYTES = 1 << 25  # of rows read together, and of their cosines


@dataclass(frozen=True, slots=True)
class DenseStore:
    """Vectors of texts, one a line of the file they were made of.

    Attributes:
        vectors: (n, dim) float32; mapped from disk.
        about: what made them (`reopen.origin`).
        place: the file that says so.
        ids: (n, 16) uint8, hashes of the lines; None where they stand in a file of their own.
        texts: of formats that hold them.
    """

    vectors: np.ndarray = field(repr=False)
    about: dict[str, Any]
    place: Path
    ids: np.ndarray | None = field(default=None, repr=False)
    texts: SpooledTexts | None = field(default=None, repr=False)

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

    def read_ids(self, path: Path) -> np.ndarray:
        """Return the hashes of the lines that stand beside this file, (n, 16) uint8.

        Raises:
            DataError: there are none, or they are of other lines.
        """
        return read_ids(path, len(self.vectors), str(self.about.get("ids")))

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


def read_dense(path: Path, file_format: str | None = None) -> DenseStore:
    """Open what `embed_to_file` wrote.

    npy, npz and safetensors are mapped. The others are read into temporary files first, all of
    them each time, and those are mapped.

    Args:
        path: of the file.
        file_format: one of `FORMATS`; by default the one that its ending names.

    Raises:
        DataError: there is no such file, it is not whole, or nothing says what made it.
        ResourceError: the disk of temporary files is full.
        UsageError: it is parquet, whose package is not installed.
    """
    found = format_of(path, file_format)
    place = path if found in INSIDE else sidecar_path(path)
    for part in (path, place):
        if not part.is_file():
            again = " --force" if path.is_file() else ""
            fix = f"embed a file: sempa-mlx embed FILE -o {path}{again}"
            raise DataError(Problem("no such file", str(part), fix=fix))
    try:
        return _opened(path, found, place)
    except DAMAGED as error:
        raise DataError(Problem(f"not a file of vectors ({error})", str(path))) from error


def _opened(path: Path, file_format: str, place: Path) -> DenseStore:
    if file_format == "npy":
        vectors = read_npy(path)
        return DenseStore(vectors, _about(place, path, vectors.shape), place)
    if file_format in ("npz", "safetensors"):
        read = read_npz if file_format == "npz" else read_safetensors
        vectors, ids, header = read(path)
        about = _about(place, path, vectors.shape, header)
        if ids.shape != (len(vectors), ID_BYTES):
            raise ValueError(f"hashes of {len(ids)} lines")
        return DenseStore(vectors, about, place, ids)
    about = _about(place, path, None, read_header(path) if file_format == "parquet" else None)
    rows = {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet}[file_format]
    spooled = spool(rows(path, about["dim"]), about["dim"])
    _check_shape(about, place, path, spooled.vectors.shape)
    return DenseStore(spooled.vectors, about, place, spooled.ids, spooled.texts)


def _about(
    place: Path, path: Path, shape: tuple[int, ...] | None, header: str | None = None
) -> dict[str, Any]:
    """Return what made a file; look whether it is of vectors of such a shape, if one is given."""
    try:
        about: dict[str, Any] = json.loads(header or place.read_text(encoding="utf-8"))
        _, _ = (about["count"], operator.index(about["dim"])), about["normalize"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        what = f"does not say what made {path.name} ({error!r})"
        raise DataError(Problem(what, str(place), fix="embed again")) from error
    if shape is not None:
        _check_shape(about, place, path, shape)
    return about


def _check_shape(about: dict[str, Any], place: Path, path: Path, shape: tuple[int, ...]) -> None:
    count, dim = about["count"], about["dim"]
    if (count, dim) != shape:
        what = f"belongs to {count} vectors of {dim} numbers"
        found = f"{path.name} has {shape[0]} of {shape[1]}"
        raise DataError(Problem(what, str(place), found, "embed again"))


def known_lines(
    encoder: Encoder, path: Path, adapter_path: Path | None, file_format: str | None = None
) -> KnownLines:
    """Open an earlier file of vectors, so that its lines need not be embedded again.

    Raises:
        DataError: it is no such file, not whole, or has no hashes of its lines.
        UsageError: another encoder made it; everything that differs is named.
    """
    store = read_dense(path, file_format)
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
    ids = store.ids if store.ids is not None else store.read_ids(path)
    return KnownLines(store.vectors, ids)
