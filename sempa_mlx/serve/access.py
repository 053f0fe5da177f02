"""The log: what was asked for, how it ended and how long it took; never a text, never a key."""

import time
import traceback
from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MODELS = "/v1/models"
KNOWN_PATHS = ("/v1/embeddings", "/v1/chat/completions", MODELS, "/health")
KNOWN_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE")
NOTE = "sempa_mlx.note"


def note(request: Request, facts: str) -> None:
    """Add facts in numbers to a request's line in the log."""
    request.scope[NOTE] = facts


class AccessLog:
    """Writes one line a request. Of the path only what the server itself has is named."""

    def __init__(self, app: ASGIApp, *, log: Callable[[str], None]) -> None:
        """Hand requests on to `app`."""
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # of an error that nothing else answers
        started = time.perf_counter()

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            took = 1000 * (time.perf_counter() - started)
            facts = f"  {scope[NOTE]}" if NOTE in scope else ""
            self._log(f"{_asked(scope)} {status}  {took:.0f} ms{facts}")


def _asked(scope: Scope) -> str:
    """Return method and path as far as they cannot hold anything of a user's."""
    method = scope["method"] if scope["method"] in KNOWN_METHODS else "?"
    path = scope["path"]
    if path.startswith(f"{MODELS}/"):
        path = f"{MODELS}/…"
    elif path not in KNOWN_PATHS:
        path = "(other path)"
    return f"{method} {path}"


def bug_report(error: BaseException) -> str:
    """Say which error came from where, without its message, which may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-6:]))
    return f"error: {type(error).__name__} at {places}: this is a bug"
