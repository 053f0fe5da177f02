"""The header of a GGUF file, walked before MLX reads it.

MLX's reader trusts some of the lengths in a file: a false one ends the process (a segmentation
fault, an assertion, a division by zero). So every length is held against the file first.
"""

import mmap
from pathlib import Path
from struct import Struct, calcsize

from sempa_mlx.errors import ModelError, Problem

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4  # llama.cpp's own limit
STRING, ARRAY = 8, 9
# Kinds of numbers, as the module struct calls them.
SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
# Of tensors: those that MLX reads as they are, BF16 and Q6_K (the embeddings of many Q4_0 files)
# rounded to float16. It reads some others too, and Q4_K wrongly (mlx 0.32.4).
TYPES = {0: "F32", 1: "F16", 30: "BF16", 2: "Q4_0", 3: "Q4_1", 8: "Q8_0", 14: "Q6_K"}
BF16 = 30
OTHER_TYPES = {6: "Q5_0", 7: "Q5_1", 9: "Q8_1"} | dict(
    enumerate(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"), start=10)
)
_U32 = 4
_ALIGNMENT = b"general.alignment"
_LONGEST_NAME = 1 << 16

_INT32, _INT64 = Struct("<I"), Struct("<Q")


def check_header(path: Path) -> dict[str, int]:
    """Refuse a GGUF file whose header does not hold together; return the types of its tensors.

    Raises:
        ModelError: a count or a length points beyond the file, or a type is unknown.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise _refused(path, "the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _walk(_Cursor(content))
            except _UnreadTypeError as error:
                fix = f"take a file of {', '.join(TYPES.values())}, or an mlx-lm folder"
                raise ModelError(
                    Problem(f"{error}, which is not read", str(path), fix=fix)
                ) from error
            except ValueError as error:
                raise _refused(path, str(error)) from error


class _UnreadTypeError(ValueError):
    """A tensor is of a type that is not read here."""


class _Cursor:
    """A place in the file; whoever would read beyond its end gets a ValueError."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = 0

    def skip(self, length: int) -> int:
        """Go on by so many bytes; return where they began."""
        start, end = self._at, self._at + length
        if end > len(self._content):
            raise ValueError("a length in the header points beyond the file")
        self._at = end
        return start

    def take(self, length: int) -> bytes:
        start = self.skip(length)
        return self._content[start : start + length]

    def int32(self) -> int:
        return int(_INT32.unpack_from(self._content, self.skip(4))[0])

    def int64(self) -> int:
        return int(_INT64.unpack_from(self._content, self.skip(8))[0])

    def skip_string(self) -> None:
        self.skip(self.int64())

    def name(self) -> bytes:
        length = self.int64()
        if length > _LONGEST_NAME:
            raise ValueError("a name in the header is too long")
        return self.take(length)


def _walk(cursor: _Cursor) -> dict[str, int]:
    if cursor.take(4) != MAGIC:
        raise ValueError("it does not begin as GGUF")
    version = cursor.int32()
    if version not in VERSIONS:
        raise ValueError(f"GGUF version {version} is not read")
    num_tensors, num_values = cursor.int64(), cursor.int64()
    for _ in range(num_values):
        _walk_value(cursor)
    return dict(_walk_tensor(cursor) for _ in range(num_tensors))


def _walk_value(cursor: _Cursor) -> None:
    name, kind = cursor.name(), cursor.int32()
    if name == _ALIGNMENT:
        alignment = cursor.int32() if kind == _U32 else 0
        if alignment == 0 or alignment & (alignment - 1):
            raise ValueError("the alignment is no power of two")
    elif kind == STRING:
        cursor.skip_string()
    elif kind == ARRAY:
        _walk_array(cursor)
    else:
        cursor.skip(_scalar_bytes(kind))


def _walk_array(cursor: _Cursor) -> None:
    kind, count = cursor.int32(), cursor.int64()
    if kind != STRING:
        cursor.skip(_scalar_bytes(kind) * count)
        return
    for _ in range(count):
        cursor.skip_string()


def _scalar_bytes(kind: int) -> int:
    if kind not in SCALARS:
        raise ValueError(f"values of type {kind} are not read here")
    return calcsize(f"<{SCALARS[kind]}")


def _walk_tensor(cursor: _Cursor) -> tuple[str, int]:
    name = cursor.name()
    dimensions = cursor.int32()
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"a tensor has {dimensions} dimensions")
    sizes = [cursor.int64() for _ in range(dimensions)]
    if 0 in sizes:
        raise ValueError("a tensor is empty")
    kind = cursor.int32()
    if kind not in TYPES:
        what = f"{name.decode(errors='replace')} is of type {OTHER_TYPES.get(kind, kind)}"
        raise _UnreadTypeError(what)
    cursor.skip(8)  # the offset, which MLX holds against the file itself
    return name.decode(errors="replace"), kind


def _refused(path: Path, what: str) -> ModelError:
    return ModelError(
        Problem(f"not a readable GGUF file ({what})", str(path), fix="download it again")
    )
