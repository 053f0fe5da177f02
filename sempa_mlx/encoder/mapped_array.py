"""Arrays mapped from disk, whatever stands in the file."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError

import numpy as np


def map_array(path: Path) -> np.ndarray:
    """Map a `.npy` file.

    Raises:
        ValueError, OSError, EOFError: it is something else, or not whole.
    """
    with plain_errors():
        return np.lib.format.open_memmap(path, mode="r")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn all that numpy raises at a damaged header into ValueError: it parses them as Python."""
    try:
        with np.errstate(over="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (TokenError, SyntaxError, TypeError, OverflowError, AttributeError) as error:
        raise ValueError(f"its header is damaged: {error}") from error
