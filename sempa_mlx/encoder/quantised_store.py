"""Vectors on disk in a byte or a bit a number: scanned first, then the best are scored exactly.

Beside `x.npy` stand `x.int8.npy` (n, dim) int8 or `x.binary.npy` (n, dim / 8) uint8, and a JSON
file with what reads them. A scan of them reads a quarter, or a thirty-second, of the bytes; the
candidates that it finds are then compared by their full vectors.

- `int8`: 255 levels between the ends of each dimension; queries stay as they are.
- `binary`: the signs of vectors whose mean has been taken out (states of language models share a
  large one, whose signs say nothing); queries too. Hamming distance.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sempa_mlx.encoder.dense_search import DenseStore, let_go
from sempa_mlx.encoder.mapped_array import map_array
from sempa_mlx.encoder.ranking import Hits, best_rows, nearest_rows
from sempa_mlx.errors import DataError, Problem
from sempa_mlx.files import replacing_together

PRECISIONS = ("int8", "binary")
RESCORE = 8  # candidates for each hit that is wanted
ROWS = 1 << 15  # of a block
LEVELS = 127  # on either side of the middle


@dataclass(frozen=True, slots=True)
class QuantisedStore:
    """A file of vectors with its codes.

    Attributes:
        dense: the vectors.
        precision: `int8` or `binary`.
        codes: (n, dim) int8 or (n, dim / 8 rounded up) uint8; mapped from disk.
        middle: (dim,) float32, of each dimension's levels, or the mean.
        step: (dim,) float32, between levels; not used by `binary`.
    """

    dense: DenseStore
    precision: str
    codes: np.ndarray = field(repr=False)
    middle: np.ndarray = field(repr=False)
    step: np.ndarray = field(repr=False)

    def search(self, queries: np.ndarray, k: int, rescore: int = RESCORE) -> list[Hits]:
        """Return the k rows nearest to each query among the `k * rescore` best of the codes.

        Scores are cosines of the full vectors, in float64; ties go by row.

        Args:
            queries: (q, dim) float32 of unit length.
            k: rows of each; all if there are fewer.
            rescore: candidates for each of them, >= 1.

        Raises:
            DataError: vectors or codes hold NaN or infinity.
        """
        score = self._int8 if self.precision == "int8" else self._hamming
        found: list[Hits] = [[] for _ in queries]
        for start in range(0, len(self.codes), ROWS):
            block = self.codes[start : start + ROWS]
            for index, scores in enumerate(score(queries, block)):
                hits = [(start + row, value) for row, value in best_rows(scores, k * rescore)]
                both = sorted(found[index] + hits, key=lambda hit: (-hit[1], hit[0]))
                found[index] = both[: k * rescore]
            let_go(self.codes, start, start + len(block))
        return [self._rescored(query, hits, k) for query, hits in zip(queries, found, strict=True)]

    def _int8(self, queries: np.ndarray, block: np.ndarray) -> np.ndarray:
        scores: np.ndarray = (queries * self.step) @ block.astype(np.float32).T
        return scores  # the middles add the same to every row

    def _hamming(self, queries: np.ndarray, block: np.ndarray) -> np.ndarray:
        signs = np.packbits(queries > self.middle, axis=1)
        return np.stack(
            [-np.bitwise_count(block ^ each).sum(axis=1, dtype=np.int32) for each in signs]
        ).astype(np.float32)

    def _rescored(self, query: np.ndarray, hits: Hits, k: int) -> Hits:
        rows = np.array(sorted(row for row, _ in hits), dtype=np.int64)
        vectors = self.dense.rows(rows)
        if not np.isfinite(vectors).all():
            what = "vectors hold NaN or infinity"
            raise DataError(Problem(what, str(self.dense.place), fix="embed the file again"))
        best = nearest_rows(vectors, query, vectors @ query, k)
        return [(int(rows[at]), score) for at, score in best]


def codes_path(vectors: Path, precision: str) -> Path:
    """Return where the codes of a file of vectors stand: `x.int8.npy` for `x.npy`."""
    return vectors.with_name(f"{vectors.name.removesuffix('.npy')}.{precision}.npy")


def quantise(store: DenseStore, path: Path, precision: str) -> Path:
    """Write the codes of a file of vectors, block by block; return where.

    Args:
        store: `read_dense(path)`.
        path: of the vectors.
        precision: `int8` or `binary`.

    Raises:
        DataError: a vector holds NaN or infinity; nothing is written.
        ResourceError: it cannot be written; what was there stays.
    """
    middle, step = _ranges(store, precision)
    code = _to_levels if precision == "int8" else _to_signs
    out = codes_path(path, precision)
    width = len(middle) if precision == "int8" else -(-len(middle) // 8)
    dtype = np.int8 if precision == "int8" else np.uint8
    with replacing_together(out, about_path(out), is_last_seal=True) as (temporary, about):
        with temporary.open("wb") as handle:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False}
            shape = {"shape": (len(store.vectors), width)}
            np.lib.format.write_array_header_1_0(handle, header | shape)
            for _, rows in store.blocks(ROWS):
                handle.write(code(rows, middle, step).tobytes())
        facts = {"precision": precision, "count": len(store.vectors), "dim": len(middle)}
        # Not whether they are of unit length: their codes are.
        facts |= {name: store.about.get(name) for name in ("vectors", "ids", "post")}
        ends = {"middle": middle.tolist(), "step": step.tolist()}
        about.write_text(json.dumps(facts | ends) + "\n", encoding="utf-8")
    return out


def read_quantised(store: DenseStore, path: Path, precision: str) -> QuantisedStore:
    """Open the codes that stand beside a file of vectors.

    Raises:
        DataError: there are none, they are not whole, or were made of other vectors.
    """
    out = codes_path(path, precision)
    fix = f"make them: sempa-mlx embed FILE -o {path} --update --precision {precision}"
    try:
        codes = map_array(out)
        about: dict[str, Any] = json.loads(about_path(out).read_text(encoding="utf-8"))
        said = [about[name] for name in ("precision", "count", "dim", "vectors", "ids")]
        said.append(about.get("post"))  # not written by older versions
        middle, step = (np.array(about[name], dtype=np.float32) for name in ("middle", "step"))
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        raise DataError(Problem(f"no codes of {path.name} ({error})", str(out), fix=fix)) from error
    count, dim = store.vectors.shape
    expected = [precision, count, dim, *map(store.about.get, ("vectors", "ids", "post"))]
    width = dim if precision == "int8" else -(-dim // 8)
    if said != expected or codes.shape != (count, width) or not len(middle) == len(step) == dim:
        raise DataError(Problem(f"codes of other vectors than {path.name}", str(out), fix=fix))
    return QuantisedStore(store, precision, codes, middle, step)


def about_path(out: Path) -> Path:
    """Return where the description of codes stands."""
    return out.with_name(out.name.removesuffix(".npy") + ".json")


def describes_codes(out: Path) -> bool:
    """Tell whether what stands beside `out` says that codes are in it, or it looks like them.

    A kill while codes are replaced leaves them without what says so.
    """
    try:
        about = json.loads(about_path(out).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _looks_like_codes(out)
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and {"precision", "middle"} <= about.keys()


def _looks_like_codes(out: Path) -> bool:
    try:
        codes = map_array(out)
    except (OSError, ValueError, TypeError, EOFError):
        return False
    return codes.ndim == 2 and codes.dtype in (np.int8, np.uint8)


def _ranges(store: DenseStore, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Return middle and step of each dimension; the middle of `binary` is the mean."""
    dim = store.vectors.shape[1]
    low, high, total = np.full(dim, np.inf), np.full(dim, -np.inf), np.zeros(dim)
    for _, rows in store.blocks(ROWS):
        if not np.isfinite(rows).all():
            what = "vectors hold NaN or infinity"
            raise DataError(Problem(what, str(store.place), fix="embed the file again"))
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
        total += rows.sum(axis=0, dtype=np.float64)
    if not len(store.vectors):
        return np.zeros(dim, dtype=np.float32), np.ones(dim, dtype=np.float32)
    step = (high - low) / (2 * LEVELS)
    middle = (low + high) / 2 if precision == "int8" else total / len(store.vectors)
    return middle.astype(np.float32), np.where(step > 0, step, 1).astype(np.float32)


def _to_levels(rows: np.ndarray, middle: np.ndarray, step: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.clip(np.rint((rows - middle) / step), -LEVELS, LEVELS).astype(np.int8)
    return found


def _to_signs(rows: np.ndarray, middle: np.ndarray, _step: np.ndarray) -> np.ndarray:
    return np.packbits(rows > middle, axis=1)
