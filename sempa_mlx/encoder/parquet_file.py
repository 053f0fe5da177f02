"""Vectors as `.parquet`: `text` and `embedding`, a row group a window (extra `parquet`)."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sempa_mlx.encoder.text_files import Rows
from sempa_mlx.encoder.vector_form import KEY, Header, Window
from sempa_mlx.errors import Problem, UsageError

ROWS = 1024  # read together


def check_installed() -> None:
    """Refuse parquet where its package is not installed.

    Raises:
        UsageError: there is no pyarrow.
    """
    if find_spec("pyarrow") is None:
        what = "parquet needs pyarrow, which is not installed"
        raise UsageError(Problem(what, fix="pip install 'sempa-mlx[parquet]'"))


def write_parquet(path: Path, windows: Iterable[Window], dim: int, header: Header) -> None:
    """Write two columns, and the metadata `sempa_vectors`.

    Args:
        path: of the file.
        windows: read once, written one by one.
        dim: of the vectors.
        header: called when all windows went by.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    vectors = pa.list_(pa.float32(), dim)
    schema = pa.schema([("text", pa.string()), ("embedding", vectors)])
    # Hardly a number stands twice: a dictionary of them is in vain.
    with ParquetWriter(path, schema, use_dictionary=False) as file:
        for window in windows:
            numbers = pa.array(np.ascontiguousarray(window.vectors, dtype=np.float32).reshape(-1))
            columns = [
                pa.array(window.texts, pa.string()),
                pa.FixedSizeListArray.from_arrays(numbers, type=vectors),
            ]
            file.write_table(pa.table(columns, schema=schema))
        file.add_key_value_metadata({KEY: header()})


def read_header(path: Path) -> str:
    """Return what made a file.

    Raises:
        ValueError, OSError, KeyError: it is something else, or not whole.
    """
    from pyarrow.parquet import read_metadata

    found: bytes = (read_metadata(path).metadata or {})[KEY.encode()]
    return found.decode()


def read_parquet(path: Path, dim: int) -> Rows:
    """Yield the rows.

    Raises:
        ValueError, OSError: it has other columns or another dimension, or is not whole.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        found = file.schema_arrow
        if not {"text", "embedding"} <= set(found.names):
            raise ValueError("no columns `text` and `embedding`")
        if found.field("embedding").type != pa.list_(pa.float32(), dim):
            raise ValueError(f"`embedding` is {found.field('embedding').type}, not {dim} numbers")
        for batch in file.iter_batches(ROWS, columns=["text", "embedding"]):
            numbers = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
            yield batch.column("text").to_pylist(), numbers.reshape(-1, dim)
