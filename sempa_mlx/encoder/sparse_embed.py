"""Texts to codes on disk: embedded and coded window by window, so only codes add up in memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from sempa_mlx.encoder.coder_file import coder_place, identify, read_coder
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.reopen import origin
from sempa_mlx.encoder.sparse import SparseCoder, check_k
from sempa_mlx.encoder.sparse_lines import term_keys, write_code_lines
from sempa_mlx.encoder.sparse_store import FORMS, SparseStore, at_half_precision, write_store
from sempa_mlx.encoder.store import Tally, windows
from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.files import replacing
from sempa_mlx.model.head import output_matrix

if TYPE_CHECKING:
    from scipy.sparse import csr_array

CODE_FORMATS = (*FORMS, "jsonl")


@dataclass(frozen=True, slots=True)
class Coding:
    """How texts become codes.

    Attributes:
        encoder: hands out vectors as they leave the model (`Encoder.raw`).
        coder: fitted to just these vectors.
        k: values of a code at most.
        coder_path: the coder's file, for the header of a store.
        adapter_path: the adapter's folder, likewise.
    """

    encoder: Encoder = field(repr=False)
    coder: SparseCoder
    k: int
    coder_path: Path | None = None
    adapter_path: Path | None = None

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        coder: SparseCoder,
        k: int | None = None,
        *,
        coder_path: Path | None = None,
        adapter_path: Path | None = None,
    ) -> Self:
        """Put a coder behind an encoder, whose map, cut and unit length are left out.

        Raises:
            UsageError: the coder was fitted to other vectors, or has not k latents.
        """
        kept = coder.k if k is None else k
        check_k(kept, coder.hidden)
        if coder.vectors != encoder.vectors_key:
            what = "the coder was fitted to the vectors of another model, adapter or method"
            found = f"to {coder.vectors}; these are {encoder.vectors_key}"
            fix = "name what it was fitted to, or fit one to this: sempa-mlx sparse fit"
            raise UsageError(Problem(what, str(coder_path or ""), found, fix))
        return cls(encoder.raw(), coder, kept, coder_path, adapter_path)

    @classmethod
    def open(
        cls, encoder: Encoder, path: Path, k: int | None = None, adapter_path: Path | None = None
    ) -> Self:
        """Read a coder's file, or that in a run folder, and put it behind an encoder.

        Raises:
            ModelError: there is no such coder, or it is not whole.
            UsageError: it was fitted to other vectors, or has not k latents.
        """
        place = coder_place(path)
        coder = read_coder(place, lambda: np.array(output_matrix(encoder.loaded.model)))
        return cls.of(encoder, coder, k, coder_path=place, adapter_path=adapter_path)

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_tokens: int = 4096,
        on_progress: Callable[[int], None] | None = None,
    ) -> tuple["csr_array", int]:
        """Return the codes of texts, (n, latents) float32, and how many texts were cut.

        Raises:
            DataError: an embedding holds NaN or infinity.
        """
        vectors, num_truncated = self.encoder.encode_counted(
            texts, batch_tokens=batch_tokens, on_progress=on_progress
        )
        return self.coder.encode(vectors, self.k), num_truncated

    def describe(self) -> dict[str, Any]:
        """Return the header of a store: k, coder and encoder, with where to find them again."""
        place = None if self.coder_path is None else str(self.coder_path.resolve())
        return {
            "k": self.k,
            "coder": {**identify(self.coder), "path": place},
            "encoder": origin(self.encoder, self.adapter_path),
        }


@dataclass(frozen=True, slots=True)
class Coded:
    """What was written: where, how many codes of how many values, how many of none, texts cut."""

    path: Path | None
    sidecar: Path | None
    count: int
    num_values: int
    num_empty: int
    num_truncated: int


@dataclass(slots=True)
class _Counts:
    """What is counted while codes stream by."""

    count: int = 0
    num_values: int = 0
    num_empty: int = 0

    def add(self, codes: "csr_array") -> None:
        self.count += codes.shape[0]
        self.num_values += codes.nnz
        self.num_empty += int((np.diff(codes.indptr) == 0).sum())


def code_to_file(  # noqa: PLR0913 - one value each
    coding: Coding,
    texts: Iterable[str],
    out: Path,
    *,
    file_format: str,
    keep_texts: bool = True,
    names: Sequence[str] | None = None,
    batch_tokens: int = 4096,
    on_progress: Callable[[int], None] | None = None,
) -> Coded:
    """Embed and code texts in order into `out`, whole or not at all.

    Args:
        coding: makes the codes.
        texts: any number; read once, window by window.
        out: the file to write.
        file_format: `npz` or `safetensors` (`sparse_store`; the header is put beside it), or
            `jsonl` (`sparse_lines`).
        keep_texts: put the texts into the store, where a search shows them; lines have them anyway.
        names: of the latents, for JSON lines (`term_keys`).
        batch_tokens: upper bound of tokens in one forward pass.
        on_progress: called with the number of texts done.

    Raises:
        DataError: a text cannot be read, an embedding is not finite, or a value does not fit into
            float16; nothing is written.
        ResourceError: the disk is full or not writable; nothing is written.
    """
    from scipy.sparse import csr_array, vstack

    tally, counts = Tally(), _Counts()
    parts = _coded(coding, texts, batch_tokens, on_progress, tally)
    sidecar = None
    if file_format in FORMS:
        blocks = [csr_array((0, coding.coder.hidden), dtype=np.float32)]
        kept: list[str] = []
        for window, codes in parts:
            blocks.append(at_half_precision(codes))
            kept += window if keep_texts else []
            counts.add(blocks[-1])
        whole = csr_array(vstack(blocks, format="csr"))
        store = SparseStore(whole, coding.describe(), tuple(kept) if keep_texts else None)
        sidecar = write_store(out, store, file_format)
    else:
        with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as handle:
            _write_lines(handle, parts, term_keys(coding.coder.hidden, names), counts)
    found = (counts.count, counts.num_values, counts.num_empty, tally.num_truncated)
    return Coded(out, sidecar, *found)


def code_to_stream(
    coding: Coding,
    texts: Iterable[str],
    stream: IO[str],
    *,
    names: Sequence[str] | None = None,
    batch_tokens: int = 4096,
    on_progress: Callable[[int], None] | None = None,
) -> Coded:
    """Embed and code texts in order onto a stream as JSON lines."""
    tally, counts = Tally(), _Counts()
    parts = _coded(coding, texts, batch_tokens, on_progress, tally)
    _write_lines(stream, parts, term_keys(coding.coder.hidden, names), counts)
    found = (counts.count, counts.num_values, counts.num_empty, tally.num_truncated)
    return Coded(None, None, *found)


def _coded(
    coding: Coding,
    texts: Iterable[str],
    batch_tokens: int,
    on_progress: Callable[[int], None] | None,
    tally: Tally,
) -> Iterator[tuple[list[str], "csr_array"]]:
    for window, vectors in windows(coding.encoder, texts, batch_tokens, on_progress, tally):
        yield window, coding.coder.encode(vectors, coding.k)


def _write_lines(
    handle: IO[str],
    parts: Iterable[tuple[list[str], "csr_array"]],
    keys: Sequence[str],
    counts: _Counts,
) -> None:
    for window, codes in parts:
        write_code_lines(handle, window, codes, keys, counts.count)
        counts.add(codes)
