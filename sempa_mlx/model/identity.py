"""Which weights these are: a fingerprint of the files, the same in every precision and place."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

CHUNK = 4096
CHUNKS = 256


def weight_files(path: Path) -> list[Path]:
    """List the files that hold a model's weights: the GGUF file itself, or a folder's shards."""
    return [path] if path.is_file() else sorted(path.glob("model*.safetensors"))


def fingerprint(files: Iterable[Path]) -> str:
    """Hash each file's size and evenly spread pieces of it: 16 hex digits.

    Up to 1 MiB is hashed whole; of a larger file 256 pieces of 4 KiB, its first and last among
    them. That tells a base from its fine-tuned variants without reading gigabytes; it is no
    defence against somebody who wants two models to look alike.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        pieces = max(1, min(CHUNKS, -(-size // CHUNK)))
        span = max(0, size - CHUNK)
        with file.open("rb") as handle:
            for piece in range(pieces):
                handle.seek(piece * span // max(1, pieces - 1))
                digest.update(handle.read(CHUNK))
    return digest.hexdigest()[:16]
