"""How many requests are in the house at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from sempa_mlx.serve.faults import unavailable


class Admission:
    """Counts requests from their first byte to the last of their answer."""

    def __init__(self, most: int, retry_after: int) -> None:
        """Let in `most` at a time; ask others to come again after so many seconds."""
        self._most = most
        self._retry_after = retry_after
        self.inside = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the block.

        Raises:
            RequestError: 503, all are taken.
        """
        if self.inside >= self._most:
            what = f"{self._most} requests wait or run already"
            raise unavailable(what, self._retry_after)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1
