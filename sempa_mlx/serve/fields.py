"""Reads the fields of a request: every fault is found, and a field that nobody knows is one."""

from collections.abc import Callable
from typing import Any, TypeGuard

from sempa_mlx.serve.faults import bad_request

SHOWN_CHARACTERS = 40
MAX_FAULTS = 20  # that are told; a body may hold millions


class Fields:
    """The fields of a JSON object that are left to read; null counts as not given."""

    def __init__(self, document: object) -> None:
        """Take a parsed body.

        Raises:
            RequestError: 400, it is no object.
        """
        if not isinstance(document, dict):
            raise bad_request("the body must be a JSON object")
        self._left = {name: value for name, value in document.items() if value is not None}
        self._faults: list[tuple[str, str]] = []
        self._num_faults = 0

    def fault(self, name: str, what: str) -> None:
        """Note a fault of a field, unless many are noted."""
        self._num_faults += 1
        if self._num_faults <= MAX_FAULTS:
            self._faults.append((name, f"`{name}` {what}"))

    @property
    def has_many_faults(self) -> bool:
        """Tell whether further faults would not be told."""
        return self._num_faults > MAX_FAULTS

    def value(self, name: str) -> Any:  # noqa: ANN401 - any JSON value
        """Take a field as it is; None if it is not there."""
        return self._left.pop(name, None)

    def text(self, name: str) -> str:
        """Take a text that has to be there."""
        value = self.value(name)
        if is_text(value) and value:
            return value
        self.fault(name, "must be a text that is not empty")
        return ""

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Take a number from `low` to `high`."""
        value = self.value(name)
        if value is None:
            return default
        if is_number(value) and low <= value <= high:
            return float(value)
        self.fault(name, f"must be a number from {low:g} to {high:g}")
        return default

    def whole(self, name: str, low: int, high: int) -> int | None:
        """Take a whole number from `low` to `high`; None if it is not there."""
        value = self.value(name)
        if value is None or (is_whole(value) and low <= value <= high):
            return value
        self.fault(name, f"must be a whole number from {low} to {high}")
        return None

    def flag(self, name: str) -> bool:
        """Take true or false; false if it is not there."""
        value = self.value(name)
        if value is not None and not isinstance(value, bool):
            self.fault(name, "must be true or false")
        return value is True

    def only(self, name: str, *allowed: Any) -> None:  # noqa: ANN401 - any JSON values
        """Take a field of something that is not done here; only values that ask for nothing go."""
        value = self.value(name)
        if value is not None and not any(_same(value, each) for each in allowed):
            self.fault(name, "is not supported by this server")

    def ignore(self, *names: str) -> None:
        """Take fields that change no answer."""
        for name in names:
            self.value(name)

    def finish(self) -> None:
        """Check that nothing is wrong or left.

        Raises:
            RequestError: 400 with the faults; `param` is the first field.
        """
        for name in self._left:
            if self.has_many_faults:
                break
            self.fault(shown_name(name), "is no field of this request")
        if self._faults:
            message = "; ".join(what for _, what in self._faults)
            message += "; and more" if self.has_many_faults else ""
            raise bad_request(message, param=self._faults[0][0])


def shown_name(name: str) -> str:
    """Return the name of a field as a message may show it: short, and in ASCII."""
    return ascii(name)[1:-1][:SHOWN_CHARACTERS]


def is_text(value: object) -> TypeGuard[str]:
    """Tell whether a JSON value is a text of whole Unicode characters."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # \\ud800 alone is JSON but no character; tokenizers fail on it
        return False
    return True


def is_whole(value: object) -> TypeGuard[int]:
    """Tell whether a JSON value is a whole number; true is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether a JSON value is a number; true is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_list_of(check: Callable[[object], bool], value: object) -> bool:
    """Tell whether a JSON value is a list of values of one kind."""
    return isinstance(value, list) and all(map(check, value))


def _same(value: object, other: object) -> bool:
    """Compare as JSON does: true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
