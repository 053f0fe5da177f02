"""Arrays mapped from disk, whatever stands in the file."""

import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import error as StructError
from tokenize import TokenError

import numpy as np
from safetensors import SafetensorError

# What reading a file of arrays raises where it is not whole or something else; the unimplemented is
# a way of packing that zipfile does not know.
DAMAGED = (
    *(ValueError, KeyError, OSError, EOFError, NotImplementedError, StructError),
    *(zipfile.BadZipFile, zlib.error, SafetensorError),
)


def map_array(path: Path) -> np.ndarray:
    """Map a `.npy` file.

    Raises:
        ValueError, OSError, EOFError: it is something else, or not whole.
    """
    with plain_errors():
        return np.lib.format.open_memmap(path, mode="r")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what is raised at damaged bytes into ValueError.

    numpy parses its headers as Python; zipfile takes a wrong bit for encryption.
    """
    try:
        with np.errstate(over="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (
        TokenError,
        SyntaxError,
        TypeError,
        OverflowError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise ValueError(f"it is damaged: {error}") from error
