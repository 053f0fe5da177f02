"""Errors that a client gets, in OpenAI's shape."""

from collections.abc import Mapping
from typing import Any


class RequestError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the HTTP status and headers, and the fields of OpenAI's error object."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers

    def document(self) -> dict[str, Any]:
        """Return the body of the answer."""
        fields = {"message": self.message, "type": self.kind, "param": self.param}
        return {"error": {**fields, "code": self.code}}


class ClientGoneError(Exception):
    """The client hung up before its answer was ready."""


def bad_request(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    """Return a 400."""
    return RequestError(400, message, param=param, code=code)


def internal_fault() -> RequestError:
    """Return the 500 of a bug; what it was stays in the server's log."""
    return RequestError(500, "internal error; see the server's log", kind="server_error")


def unavailable(what: str, retry_after: int = 1) -> RequestError:
    """Return the 503 of a request that a client may send again after so many seconds."""
    headers = {"retry-after": str(retry_after)}
    return RequestError(503, what, kind="server_error", code="unavailable", headers=headers)


def stopping() -> RequestError:
    """Return the 503 of a request that a stopping server cannot finish."""
    return unavailable("the server is stopping")
