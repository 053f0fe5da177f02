"""Fused element-wise functions that stay fused while a gradient is taken.

`mx.compile` turns a chain of element-wise operations into one loop. Called on arrays that a
gradient is traced through, it steps aside (mlx 0.32, `compile.cpp`) and leaves the chain unfused: a
training step then goes through memory once for every multiplication of a polynomial. Whether a
trace is going on is known to the thread it began in, so another thread builds these parts of the
graph, on the stream of the first. They are the inside of custom functions, whose gradients are
given by hand: nothing needs to be traced through them.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

import mlx.core as mx

P = ParamSpec("P")
R = TypeVar("R")
_IS_DIFFERENTIATING: ContextVar[bool] = ContextVar("is_differentiating", default=False)


@contextmanager
def differentiating() -> Iterator[None]:
    """Say that gradients are traced inside the block."""
    token = _IS_DIFFERENTIATING.set(True)
    try:
        yield
    finally:
        _IS_DIFFERENTIATING.reset(token)


def stays_fused(build: Callable[P, R]) -> Callable[P, R]:
    """Keep compiled functions fused that `build` calls, under `differentiating` as well.

    No gradient flows through what it returns.
    """

    @wraps(build)
    def built(*arrays: P.args, **options: P.kwargs) -> R:
        if not _IS_DIFFERENTIATING.get():
            return build(*arrays, **options)
        stream = mx.default_stream(mx.default_device())

        def elsewhere() -> R:
            with mx.stream(stream):
                return build(*arrays, **options)

        return _builder().run(elsewhere)

    return built


@cache
def _builder() -> "_Builder":
    return _Builder()


class _Builder:
    """One thread for the whole process; what is compiled in it is kept.

    It never ends: mlx drops what a thread compiled as the thread ends, needs Python for it, and
    takes the process down where Python is gone by then.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        Thread(target=self._work, name="fused", daemon=True).start()

    def run(self, build: Callable[[], R]) -> R:
        """Return what `build` returns there, or raise what it raises."""
        outcome: Future[R] = Future()
        self._jobs.put((build, outcome))
        return outcome.result()

    def _work(self) -> None:
        while True:
            build, outcome = self._jobs.get()
            try:
                outcome.set_result(build())
            except BaseException as error:  # noqa: BLE001 - it is raised where it belongs
                outcome.set_exception(error)
            del build, outcome  # or their arrays would live until the next job
