"""Vectors on disk: a text file in, one vector a line out, however long the file is.

Texts are read, embedded and written window by window, so memory does not grow with the file. The
output takes its place only when it is whole. Beside it stands a JSON file that says what made it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.line_ids import ids_path, line_ids
from sempa_mlx.encoder.ranking import Hits, nearest_rows
from sempa_mlx.encoder.reopen import origin
from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.files import replacing, replacing_together

FORMATS = ("npy", "jsonl")
WINDOW = 8192  # texts read, deduplicated and sorted by length together


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was written: where, how many vectors of which length, how many texts were cut.

    `num_kept` vectors were taken from an earlier file.
    """

    path: Path
    sidecar: Path | None
    count: int
    dim: int
    num_truncated: int
    num_kept: int = 0


@dataclass(slots=True)
class Tally:
    """What is counted while windows stream by."""

    num_truncated: int = 0
    num_kept: int = 0


class KnownLines:
    """Vectors of an earlier file by the hash of their lines."""

    def __init__(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        """Take vectors (n, dim) float32 and hashes (n, 16) uint8; both may be mapped from disk."""
        self.vectors = vectors
        self._rows = {bytes(each): row for row, each in enumerate(np.asarray(ids))}

    def rows(self, ids: np.ndarray) -> list[int | None]:
        """Return the row of each hash, None for those of new lines."""
        return [self._rows.get(bytes(each)) for each in ids]


def format_of(path: Path, wanted: str | None, formats: Sequence[str] = FORMATS) -> str:
    """Return the output format: the one asked for, else the one the file's ending names.

    Raises:
        UsageError: the ending or the name is not known.
    """
    name = wanted or path.suffix.removeprefix(".")
    if name not in formats:
        raise UsageError(
            Problem(f"unknown output format `{name}`", fix=f"--format {' or '.join(formats)}")
        )
    return name


def sidecar_path(out: Path) -> Path:
    """Return where the description of a file stands: `x.json` for `x.npy`, else `x.npz.json`.

    So vectors and codes of one text file can lie side by side.
    """
    return out.with_name(out.name.removesuffix(".npy") + ".json")


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
    """Embed texts in order into `out`; beside npy, a sidecar and the hashes of the lines.

    Args:
        encoder: makes the vectors.
        texts: any number of texts; read once, window by window.
        out: the file to write.
        file_format: `npy` (one float32 array, (n, dim)) or `jsonl` (a text and its vector a line).
        adapter_path: where the adapter lies; the sidecar says so, and `search` finds it there.
        source: the file the texts are the lines of; the sidecar says so, and `search` reads it.
        known: lines that need not be embedded again, made by the same encoder.
        batch_tokens: upper bound of tokens in one forward pass.
        on_progress: called with the number of texts done.

    Raises:
        DataError: a text cannot be read; nothing is written.
        ResourceError: the disk is full or not writable; nothing is written.
    """
    tally = Tally()
    parts = windows(encoder, texts, batch_tokens, on_progress, tally, known)
    if file_format == "jsonl":
        with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as handle:
            count = write_jsonl(handle, parts)
        return Embedded(out, None, count, encoder.dim, tally.num_truncated, tally.num_kept)
    sidecar = sidecar_path(out)
    with replacing_together(out, ids_path(out), sidecar) as (vectors, ids, about):
        count, digest = _write_npy(vectors, ids, parts, encoder.dim)
        facts = {"count": count, "ids": digest, "source": source and str(source.resolve())}
        about.write_text(sidecar_text(encoder, facts, adapter_path), encoding="utf-8")
    return Embedded(out, sidecar, count, encoder.dim, tally.num_truncated, tally.num_kept)


def embed_for_others(encoder: Encoder, texts: Iterable[str], *, batch_tokens: int = 4096) -> None:
    """Do this process's share of `embed_to_file`, which another process of its world calls."""
    for _ in windows(encoder, texts, batch_tokens, None, Tally()):
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
    write_jsonl(stream, windows(encoder, texts, batch_tokens, on_progress, tally))
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


def _write_npy(
    path: Path, ids: Path, windows: Iterable[tuple[list[str], np.ndarray]], dim: int
) -> tuple[int, str]:
    """Write a growing array and its lines' hashes; return their count and a digest of the hashes.

    numpy pads its header, so the final count fits over the first one.
    """
    count = 0
    hashes = [line_ids([])]
    with path.open("wb") as handle:
        _npy_header(handle, 0, dim)
        start = handle.tell()
        for texts, vectors in windows:
            handle.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
            hashes.append(line_ids(texts))
            count += len(vectors)
        handle.seek(0)
        _npy_header(handle, count, dim)
        if handle.tell() != start:
            raise RuntimeError("numpy changed the length of its header")
    joined = np.concatenate(hashes)
    with ids.open("wb") as handle:
        np.save(handle, joined, allow_pickle=False)
    return count, hashlib.sha256(joined.tobytes()).hexdigest()[:16]


def _npy_header(handle: IO[bytes], count: int, dim: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
    np.lib.format.write_array_header_1_0(handle, header)


def write_jsonl(handle: IO[str], windows: Iterable[tuple[list[str], np.ndarray]]) -> int:
    """Write `{"text", "embedding"}` a line; numbers keep float32's full precision."""
    count = 0
    for texts, vectors in windows:
        for text, vector in zip(texts, vectors, strict=True):
            row: dict[str, Any] = {"text": text, "embedding": [float(str(v)) for v in vector]}
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
        count += len(texts)
    return count


def sidecar_text(encoder: Encoder, facts: dict[str, Any], adapter_path: Path | None = None) -> str:
    """Return the JSON that stands beside a vector file: how many, of what, and what made them."""
    return json.dumps(facts | origin(encoder, adapter_path), indent=2, ensure_ascii=False) + "\n"


def nearest(vectors: np.ndarray, query: np.ndarray, k: int) -> Hits:
    """Return the k rows of unit vectors (n, dim) nearest to a unit query, with their cosines."""
    return nearest_rows(vectors, query, vectors @ query, k)
