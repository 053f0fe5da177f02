"""Vectors as text: JSON lines and CSV, with the texts; a float32 comes back bit for bit."""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from sempa_mlx.data.readers import Faults
from sempa_mlx.data.readers import read_jsonl as json_rows
from sempa_mlx.encoder.vector_form import Header, Window
from sempa_mlx.errors import Problem

ROWS = 1024  # read together
LONGEST = 1 << 30  # characters of a field

Rows = Iterator[tuple[list[str], np.ndarray]]  # texts, and their vectors (texts, dim) float32


def write_jsonl(handle: IO[str], windows: Iterable[Window]) -> None:
    """Write `{"text", "embedding"}` a line; numbers keep float32's full precision."""
    for window in windows:
        for text, vector in zip(window.texts, window.vectors, strict=True):
            row: dict[str, Any] = {"text": text, "embedding": [float(str(v)) for v in vector]}
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_jsonl_file(path: Path, windows: Iterable[Window], _dim: int, _header: Header) -> None:
    """Write JSON lines into a file."""
    with path.open("w", encoding="utf-8") as handle:
        write_jsonl(handle, windows)


def write_csv(path: Path, windows: Iterable[Window], dim: int, _header: Header) -> None:
    """Write a header and a row a text: `text`, then a column a dimension, `e0`, `e1`, ..."""
    with path.open("w", encoding="utf-8", newline="") as handle:
        # Left to itself it would not quote a carriage return, which ends a row for readers.
        rows = csv.writer(handle, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        rows.writerow(_columns(dim))
        for window in windows:
            for text, vector in zip(window.texts, window.vectors, strict=True):
                rows.writerow([text, *vector])


def read_jsonl(path: Path, dim: int) -> Rows:
    """Yield the rows of JSON lines.

    Raises:
        DataError: rows are no `{"text", "embedding"}` of this dimension; all of them are named.
    """
    return _windows(_json_pairs(path), dim)


def read_csv(path: Path, dim: int) -> Rows:
    """Yield the rows of a CSV file.

    Raises:
        DataError: it has other columns, or rows are at fault; all of them are named.
    """
    return _windows(_csv_pairs(path, dim), dim)


Pair = tuple[str, object, object]  # where it stands, a text, the numbers


def _json_pairs(path: Path) -> Iterator[Pair | Problem]:
    for row in json_rows(path):
        if isinstance(row, Problem):
            yield row
        else:
            yield f"{path}:{row[0]}", row[1].get("text"), row[1].get("embedding")


def _csv_pairs(path: Path, dim: int) -> Iterator[Pair | Problem]:
    csv.field_size_limit(LONGEST)  # by default a text of 128 KiB cannot be read again
    with path.open(encoding="utf-8", newline="") as handle:
        rows = csv.reader(handle, strict=True)
        try:
            if next(rows, None) != _columns(dim):
                what = f"its columns are not text, e0 to e{dim - 1}"
                yield Problem(what, f"{path}:1")
                return
            for row in rows:
                yield f"{path}:{rows.line_num}", row[0] if row else None, row[1:]
        except (csv.Error, UnicodeDecodeError) as error:
            yield Problem(f"not CSV: {error}", f"{path}:{rows.line_num}")
    if not _ends_a_line(path):  # the last number may have lost digits
        yield Problem("its last line is not whole", str(path), fix="embed the file again")


def _columns(dim: int) -> list[str]:
    return ["text", *(f"e{number}" for number in range(dim))]


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as handle:
        handle.seek(-1, os.SEEK_END)
        return handle.read() == b"\n"


def _windows(pairs: Iterator[Pair | Problem], dim: int) -> Rows:
    faults = Faults()
    while some := list(islice(pairs, ROWS)):
        texts, vectors = [], []
        for pair in some:
            vector = pair if isinstance(pair, Problem) else _vector(*pair, dim)
            if isinstance(vector, Problem):
                faults.add(vector)
            else:
                texts.append(str(pair[1]))  # type: ignore[index]  # a fault has no vector
                vectors.append(vector)
        if texts and not faults.count:
            yield texts, np.stack(vectors)
    faults.raise_if_any()


def _vector(place: str, text: object, numbers: object, dim: int) -> np.ndarray | Problem:
    if not isinstance(text, str):
        return Problem("has no `text`", place)
    try:
        with np.errstate(over="ignore"):  # infinity is found when it is searched
            vector = np.array(numbers, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        return Problem("its vector holds something else than numbers", place, text[:60])
    if vector.shape != (dim,):
        return Problem(f"its vector is not of {dim} numbers", place, text[:60])
    return vector
