"""The one thread that runs the model."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import mlx.core as mx


@contextmanager
def inference_thread() -> Iterator[ThreadPoolExecutor]:
    """Give one thread that may run MLX, and end it in a way that MLX survives.

    A thread that has used MLX must let go of its streams itself, as its last piece of work:
    Python's `join` returns before the thread's own storage is destroyed, and if that happens while
    the interpreter goes down, MLX aborts the whole process.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference") as thread:
        try:
            yield thread
        finally:
            thread.submit(mx.clear_streams).result()
