"""Vectors on disk: a text file in, one vector a line out, however long the file is.

Texts are read, embedded and written window by window, so memory does not grow with the file. The
output takes its place only when it is whole. Beside it stands a JSON file that says what made it.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.line_ids import ids_path, line_ids
from sempa_mlx.encoder.npy_file import write_npy
from sempa_mlx.encoder.npz_file import write_npz
from sempa_mlx.encoder.parquet_file import write_parquet
from sempa_mlx.encoder.ranking import Hits, nearest_rows
from sempa_mlx.encoder.reopen import origin
from sempa_mlx.encoder.safetensors_file import write_safetensors
from sempa_mlx.encoder.text_files import write_csv, write_jsonl, write_jsonl_file
from sempa_mlx.encoder.vector_form import Header, Window, sidecar_path
from sempa_mlx.errors import DataError, Problem
from sempa_mlx.files import json_text, replacing_together

WRITERS: dict[str, Callable[[Path, Iterable[Window], int, Header], None]] = {
    "npz": write_npz,
    "jsonl": write_jsonl_file,
    "csv": write_csv,
    "safetensors": write_safetensors,
    "parquet": write_parquet,
}
WINDOW = 8192  # texts read, deduplicated and sorted by length together


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was written: where, how many vectors of which length, how many texts were cut.

    `num_kept` vectors were taken from an earlier file.
    """

    path: Path
    sidecar: Path
    count: int
    dim: int
    num_truncated: int
    num_kept: int = 0


@dataclass(slots=True)
class Tally:
    """What is counted while windows stream by, and a hash over the hashes of their texts."""

    count: int = 0
    num_truncated: int = 0
    num_kept: int = 0
    ids: Any = field(default_factory=hashlib.sha256, repr=False)


class KnownLines:
    """Vectors of an earlier file by the hash of their lines."""

    def __init__(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        """Take vectors (n, dim) float32 and hashes (n, 16) uint8; both may be mapped from disk."""
        self.vectors = vectors
        self._rows = {bytes(each): row for row, each in enumerate(np.asarray(ids))}

    def rows(self, ids: np.ndarray) -> list[int | None]:
        """Return the row of each hash, None for those of new lines."""
        return [self._rows.get(bytes(each)) for each in ids]


def embed_to_file(  # noqa: PLR0913 - one value each
    encoder: Encoder,
    texts: Iterable[str],
    out: Path,
    *,
    file_format: str,
    adapter_path: Path | None = None,
    source: Path | None = None,
    known: KnownLines | None = None,
    batch_tokens: int = 4096,
    on_progress: Callable[[int], None] | None = None,
) -> Embedded:
    """Embed texts in order into `out`; beside it, what made it (`vector_form`).

    Args:
        encoder: makes the vectors.
        texts: any number of texts; read once, window by window.
        out: the file to write.
        file_format: one of `FORMATS`.
        adapter_path: where the adapter lies; the sidecar says so, and `search` finds it there.
        source: the file the texts are the lines of; the sidecar says so, and `search` reads it.
        known: lines that need not be embedded again, made by the same encoder.
        batch_tokens: upper bound of tokens in one forward pass.
        on_progress: called with the number of texts done.

    Raises:
        DataError: a text cannot be read, or its embedding is not finite; nothing is written.
        ResourceError: the disk is full or not writable; nothing is written.
    """
    tally = Tally()
    parts = _counted(windows(encoder, texts, batch_tokens, on_progress, tally, known), tally)

    def header() -> str:
        facts = {"count": tally.count, "ids": tally.ids.hexdigest()[:16]}
        facts["source"] = source and str(source.resolve())
        return sidecar_text(encoder, facts, adapter_path)

    sidecar = sidecar_path(out)
    beside = (ids_path(out), sidecar) if file_format == "npy" else (sidecar,)
    with replacing_together(out, *beside, is_last_seal=True) as (vectors, *ids, about):
        if ids:
            write_npy(vectors, ids[0], parts, encoder.dim)
        else:
            WRITERS[file_format](vectors, parts, encoder.dim, header)
        about.write_text(header(), encoding="utf-8")
    found = (tally.count, encoder.dim, tally.num_truncated, tally.num_kept)
    return Embedded(out, sidecar, *found)


def embed_for_others(
    encoder: Encoder,
    texts: Iterable[str],
    *,
    known: KnownLines | None = None,
    batch_tokens: int = 4096,
) -> None:
    """Do this process's share of `embed_to_file`, which another calls with the same arguments."""
    for _ in windows(encoder, texts, batch_tokens, None, Tally(), known):
        pass


def embed_to_stream(
    encoder: Encoder,
    texts: Iterable[str],
    stream: IO[str],
    *,
    batch_tokens: int = 4096,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Embed texts in order onto a stream as jsonl; return how many texts were cut."""
    tally = Tally()
    parts = windows(encoder, texts, batch_tokens, on_progress, tally)
    write_jsonl(stream, _counted(parts, tally))
    return tally.num_truncated


def windows(
    encoder: Encoder,
    texts: Iterable[str],
    batch_tokens: int,
    on_progress: Callable[[int], None] | None,
    tally: Tally,
    known: KnownLines | None = None,
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield window after window of texts with their vectors, (texts, dim) float32."""
    source = iter(texts)
    while window := list(islice(source, WINDOW)):
        rows = [None] * len(window) if known is None else known.rows(line_ids(window))
        new = [at for at, row in enumerate(rows) if row is None]
        vectors, num_truncated = encoder.encode_counted(
            [window[at] for at in new], batch_tokens=batch_tokens, on_progress=on_progress
        )
        if known is not None and len(new) < len(window):
            vectors = _filled(vectors, new, rows, known)
            tally.num_kept += len(window) - len(new)
            if on_progress:
                on_progress(len(window) - len(new))
        tally.num_truncated += num_truncated
        if not np.isfinite(vectors).all():
            faulty = int((~np.isfinite(vectors).all(axis=1)).sum())
            what = f"the embeddings of {faulty} of {len(window)} texts hold NaN or infinity"
            raise DataError(Problem(what, fix="look at how the model was trained"))
        yield window, vectors


def _filled(
    vectors: np.ndarray, new: Sequence[int], rows: Sequence[int | None], known: KnownLines
) -> np.ndarray:
    """Put new vectors and known ones where their lines stand."""
    found = np.empty((len(rows), vectors.shape[1]), dtype=np.float32)
    found[list(new)] = vectors
    for at, row in enumerate(rows):
        if row is not None:
            found[at] = known.vectors[row]
    return found


def _counted(parts: Iterable[tuple[list[str], np.ndarray]], tally: Tally) -> Iterator[Window]:
    """Hash the texts of each window, and count them."""
    for texts, vectors in parts:
        ids = line_ids(texts)
        tally.ids.update(ids.tobytes())
        tally.count += len(texts)
        yield Window(texts, vectors, ids)


def sidecar_text(encoder: Encoder, facts: dict[str, Any], adapter_path: Path | None = None) -> str:
    """Return the JSON that stands beside a vector file: how many, of what, and what made them."""
    return json_text(facts | origin(encoder, adapter_path))


def nearest(vectors: np.ndarray, query: np.ndarray, k: int) -> Hits:
    """Return the k rows of unit vectors (n, dim) nearest to a unit query, with their cosines."""
    return nearest_rows(vectors, query, vectors @ query, k)
