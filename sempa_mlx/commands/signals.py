"""Ctrl-C and SIGTERM: the first asks to stop after the step that is running, the second stops."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class StopRequest:
    """Whether a signal came, and which."""

    signum: int | None = None

    def __call__(self) -> bool:
        """Tell whether to stop."""
        return self.signum is not None

    @property
    def exit_code(self) -> int:
        """The shell's code for an end by this signal: 130 or 143."""
        return 128 + (self.signum or signal.SIGINT)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take note of signals while a block runs; earlier handlers come back afterwards."""
    request = StopRequest()

    def note(signum: int, _frame: FrameType | None) -> None:
        request.signum = signum
        # Not a handler of ours: those wait until a computation that is going on returns.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    before = {each: signal.signal(each, note) for each in SIGNALS}
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
