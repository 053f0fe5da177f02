"""What a GGUF file says before its weights: metadata, and the shapes of tensors.

`mx.load` copies every tensor into memory; this reads the first megabytes of the file only.
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx

from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.model.gguf import GgufFile, check_family
from sempa_mlx.model.gguf_header import ARRAY, MAGIC, SCALARS, STRING, check_header

_TABLE = "rope_freqs.weight"  # its values would be needed, not its shape


def read_shapes(path: Path) -> GgufFile:
    """Read the metadata, and stand-ins for the tensors that have their shapes and no memory.

    Raises:
        ModelError: the header does not hold together, or is not of the dense Llama family.
    """
    try:
        check_header(path)  # afterwards every length is known to lie inside the file
        with path.open("rb") as file:
            file.seek(len(MAGIC) + struct.calcsize("<I"))
            num_tensors, num_keys = _number(file, "Q"), _number(file, "Q")
            metadata = {_text(file): _value(file, _number(file, "I")) for _ in range(num_keys)}
            shapes = dict(_shape(file) for _ in range(num_tensors))
    except OSError as error:
        reason = Problem(f"not a readable GGUF file ({error})", place=str(path))
        raise ModelError(reason) from error
    check_family(metadata, path)
    tensors = {name: mx.zeros(shape) for name, shape in shapes.items() if name != _TABLE}
    return GgufFile(path, tensors, metadata)


def _number(file: BinaryIO, kind: str) -> Any:  # noqa: ANN401 - any scalar
    layout = "<" + kind
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "Q")).decode("utf-8", errors="replace")


def _value(file: BinaryIO, kind: int) -> Any:  # noqa: ANN401 - metadata holds any scalar or list
    if kind == STRING:
        return _text(file)
    if kind != ARRAY:
        return _number(file, SCALARS[kind])
    inner, count = _number(file, "I"), _number(file, "Q")
    return [_value(file, inner) for _ in range(count)]


def _shape(file: BinaryIO) -> tuple[str, tuple[int, ...]]:
    name = _text(file)
    sizes = [_number(file, "Q") for _ in range(_number(file, "I"))]
    file.seek(struct.calcsize("<IQ"), 1)  # block type and place of the data
    return name, tuple(reversed(sizes))
