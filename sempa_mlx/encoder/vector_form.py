"""What all files of vectors have in common, whatever their format.

Vectors are float32, bit for bit, in the order of the lines. Beside each file stands `FILE.json`,
which says what made it; where the format has a place for it, the same text is inside as well, and
what is inside counts. A file holds its texts, or a hash of each.

| format | vectors | lines | what made them |
| --- | --- | --- | --- |
| npy | the array (n, dim) | hashes in `x.ids.npy` | `x.json` |
| npz | `embeddings` (n, dim), not compressed | `ids` (n, 16) uint8 | `header`, JSON as uint8 |
| safetensors | `embeddings` (n, dim) | `ids` (n, 16) uint8 | metadata `sempa_vectors` |
| parquet | `embedding`, fixed-size list | `text` | metadata `sempa_vectors` |
| jsonl | `embedding`, a list | `text` | `FILE.json` |
| csv | `e0`, `e1`, ..., a column a dimension | `text` | `FILE.json` |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sempa_mlx.errors import Problem, UsageError

FORMATS = ("npy", "npz", "jsonl", "csv", "safetensors", "parquet")
EMBEDDINGS, IDS, HEADER = "embeddings", "ids", "header"
KEY = "sempa_vectors"

Header = Callable[[], str]  # the JSON of what made a file, once all windows went by


@dataclass(frozen=True, slots=True)
class Window:
    """Texts that are embedded and written together.

    Attributes:
        texts: in order.
        vectors: (texts, dim) float32.
        ids: (texts, 16) uint8, a hash of each text.
    """

    texts: list[str]
    vectors: np.ndarray
    ids: np.ndarray


def format_of(path: Path, wanted: str | None, formats: Sequence[str] = FORMATS) -> str:
    """Return the output format: the one asked for, else the one the file's ending names.

    Raises:
        UsageError: the ending or the name is not known, or its package is not installed.
    """
    name = wanted or path.suffix.removeprefix(".")
    if name not in formats:
        names = f"{', '.join(formats[:-1])} or {formats[-1]}"
        raise UsageError(Problem(f"unknown output format `{name}`", fix=f"--format {names}"))
    if name == "parquet":
        from sempa_mlx.encoder.parquet_file import check_installed

        check_installed()
    return name


def sidecar_path(out: Path) -> Path:
    """Return where the description of a file stands: `x.json` for `x.npy`, else `x.npz.json`.

    So vectors and codes of one text file can lie side by side.
    """
    return out.with_name(out.name.removesuffix(".npy") + ".json")
