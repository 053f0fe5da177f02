"""What tells the lines of an embedded file apart: a hash of each text, beside the vectors.

With them a later run knows which lines are new, and a search whether a line still is what it was
when it was embedded, without a second copy of the texts.
"""

import hashlib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from sempa_mlx.data.readers import read_lines
from sempa_mlx.encoder.mapped_array import map_array
from sempa_mlx.errors import DataError, Problem

ID_BYTES = 16


def line_ids(texts: Sequence[str]) -> np.ndarray:
    """Return the BLAKE2b hash of each text, (n, 16) uint8."""
    found = b"".join(hashlib.blake2b(t.encode(), digest_size=ID_BYTES).digest() for t in texts)
    return np.frombuffer(found, dtype=np.uint8).reshape(-1, ID_BYTES)


def ids_path(out: Path) -> Path:
    """Return where the hashes of a file of vectors stand: `x.ids.npy` for `x.npy`."""
    return out.with_name(out.name.removesuffix(".npy") + ".ids.npy")


def ids_digest(ids: np.ndarray) -> str:
    """Return 16 hex digits of the hashes of all lines, which the description of vectors has."""
    return hashlib.sha256(ids.data).hexdigest()[:16]


def read_ids(out: Path, count: int, digest: str) -> np.ndarray:
    """Read the hashes that stand beside a file of vectors, (count, 16) uint8.

    Args:
        out: the file of vectors.
        count: of the vectors.
        digest: of the hashes, from the description of the vectors.

    Raises:
        DataError: there are none, or they are not of these vectors' lines.
    """
    path = ids_path(out)
    try:
        found = map_array(path)
    except (OSError, ValueError, TypeError, EOFError) as error:
        what = f"no ids of the lines ({error})"
        raise DataError(Problem(what, str(path), fix="embed the file again")) from error
    if found.shape != (count, ID_BYTES) or found.dtype != np.uint8:
        what = f"holds ids of {found.shape[0]} lines"
        raise DataError(Problem(what, str(path), f"{out} has {count}", "embed the file again"))
    if ids_digest(found) != digest:  # as after a copy of some of the files
        what = f"holds ids of other lines than those of {out.name}"
        raise DataError(Problem(what, str(path), fix="embed the file again: --force"))
    return found


def lines_at(source: Path, rows: Sequence[int], ids: np.ndarray) -> dict[int, str] | None:
    """Return the lines of a text file at some rows, or None if one is not what it was.

    Args:
        source: the file, which may have changed or gone since.
        rows: from 0.
        ids: of all lines as they were embedded, (n, 16) uint8.
    """
    wanted = set(rows)
    if not wanted:
        return {}
    try:
        lines = islice(read_lines(source), max(wanted) + 1)
        found = {at: line.text for at, line in enumerate(lines) if at in wanted}
    except DataError:
        return None
    if found.keys() != wanted:
        return None
    same = all(np.array_equal(line_ids([text])[0], ids[at]) for at, text in found.items())
    return found if same else None
