"""Reference log-probabilities on disk: one append-only file of small checked records.

A record is the key of a row, its values and the CRC-32 of both, all little-endian and of one size
for the whole file. Whatever does not check out (a torn end, a flipped bit, zeros after a power cut)
is as good as absent: its rows are computed again. Any number of processes may append to one file.
"""

import errno
import fcntl
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sempa_mlx.errors import Problem
from sempa_mlx.files import cache_folder

if TYPE_CHECKING:  # it would bring in mlx, and files need none
    from sempa_mlx.model.completions import TokenRow

FORMAT = 1  # to be raised when the code would compute other values, or write other records
KEY_BYTES = 16
_CRC_BYTES = 4


def row_key(row: "TokenRow") -> bytes:
    """Return 16 bytes that stand for the token ids of a row and where its parts begin.

    BLAKE2b over little-endian int32: K, the length of the prompt, the K lengths of the completions,
    then all ids in this order. Template, tokenizer, data and truncation count through the ids.
    """
    parts = (row.prompt, *row.completions)
    numbers = [len(row.completions), *map(len, parts), *(token for part in parts for token in part)]
    return blake2b(np.array(numbers, dtype="<i4").tobytes(), digest_size=KEY_BYTES).digest()


def default_folder() -> Path:
    """Return the folder where reference values are kept."""
    return cache_folder() / "reference"


def store_path(folder: Path, *, fingerprint: str, dtype: str, device: str, candidates: int) -> Path:
    """Name the file for values that may stand in for each other.

    Args:
        folder: where the files of all models are kept.
        fingerprint: of the base model: its weights and its setup.
        dtype: precision of the model, such as `float32`.
        device: kind of device that computes: `cpu`, `metal` or `cuda`.
        candidates: K, completions a row.
    """
    return folder / f"v{FORMAT}-{fingerprint}-{dtype}-{device}-k{candidates}.bin"


class ReferenceStore:
    """The reference values of rows by key; a file keeps them for later runs.

    A file that cannot be read or written costs only that: one UserWarning is given, `fault` says
    what is wrong, and the values live as long as the process.
    """

    def __init__(self, path: Path, candidates: int) -> None:
        """Read the valid records of `path`, if it exists.

        Warns:
            UserWarning: the file exists and cannot be read.
        """
        self.fault: Problem | None = None
        self._path = path
        self._layout = np.dtype(
            [("key", f"V{KEY_BYTES}"), ("values", "<f4", (2, candidates)), ("crc", "<u4")]
        )
        self._values: dict[bytes, np.ndarray] = {}
        self._end = 0  # the file is known up to here
        try:
            self._learn(path.read_bytes())
        except FileNotFoundError:
            pass
        except OSError as error:
            self._tell("read", error)

    def __len__(self) -> int:
        """Count the rows whose values are known."""
        return len(self._values)

    def get(self, key: bytes) -> np.ndarray | None:
        """Return (2, K) float32, sums and tails in nats, or None if the row is not known."""
        return self._values.get(key)

    def add(self, items: Mapping[bytes, np.ndarray]) -> None:
        """Keep values of (2, K) float32; rows that are known or not finite are left out.

        What other processes appended since the last look becomes known, too.

        Warns:
            UserWarning: once a store, if the file cannot be written.
        """
        finite = {
            key: np.asarray(values, dtype=np.float32)
            for key, values in items.items()
            if key not in self._values and np.isfinite(values).all()
        }
        if not finite:
            return
        fault = None
        try:
            with self._locked() as descriptor:
                self._catch_up(descriptor)
                self._append(descriptor, finite)
        except OSError as error:
            fault = error
        for key, values in finite.items():
            self._values.setdefault(key, values)
        if fault is not None:
            self._tell("write", fault)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the file for appending while no other process does."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # closing the file frees it, as does a kill
            yield descriptor
        finally:
            os.close(descriptor)

    def _catch_up(self, descriptor: int) -> None:
        """Cut off a torn record, so that the next one is in line, and read what others wrote."""
        size = os.fstat(descriptor).st_size
        whole = size - size % self._layout.itemsize
        if whole < size:
            os.ftruncate(descriptor, whole)
        if whole < self._end:  # deleted meanwhile, and begun anew
            self._end = 0
        self._learn(os.pread(descriptor, whole - self._end, self._end))

    def _append(self, descriptor: int, items: Mapping[bytes, np.ndarray]) -> None:
        """Write the items that are still missing in the file, at once."""
        missing = {key: values for key, values in items.items() if key not in self._values}
        content = self._records(missing)
        written = os.write(descriptor, content)
        torn = written % self._layout.itemsize
        self._end += written - torn
        if written < len(content):
            os.ftruncate(descriptor, self._end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _records(self, items: Mapping[bytes, np.ndarray]) -> bytes:
        records = np.zeros(len(items), dtype=self._layout)
        for record, (key, values) in zip(records, items.items(), strict=True):
            record["key"], record["values"] = key, values
            record["crc"] = zlib.crc32(record.tobytes()[:-_CRC_BYTES])
        return records.tobytes()

    def _learn(self, content: bytes) -> None:
        """Take the whole and undamaged records; of two for one row, the first."""
        size = self._layout.itemsize
        records = np.frombuffer(content, self._layout, len(content) // size)
        all_values = records["values"].astype(np.float32)
        view = memoryview(content)
        starts = range(0, len(records) * size, size)
        for start, key, crc, values in zip(
            starts, records["key"].tolist(), records["crc"].tolist(), all_values, strict=True
        ):
            if zlib.crc32(view[start : start + size - _CRC_BYTES]) == crc:
                self._values.setdefault(key, values)
        self._end += len(records) * size

    def _tell(self, verb: str, error: OSError) -> None:
        """Warn, once: without the file the run is right, but later ones are slower."""
        if self.fault is not None:
            return
        self.fault = Problem(
            f"cannot {verb} reference values: {error.strerror or error}; "
            "this run goes on, later ones compute them again",
            place=str(self._path),
            fix="free some space, or set HF_HOME to a folder that can be written",
        )
        warnings.warn(f"{self.fault}; {self.fault.fix}", stacklevel=3)
