"""Who may ask: the rules that keep web pages and other machines away from a local server.

Binding to loopback does not stop a web page whose name is made to point there (DNS rebinding): its
requests carry the page's own name as `Host`. So that header has to be on a list. There is no CORS:
no answer ever allows a page of another origin to read it.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Collection

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from sempa_mlx.serve.faults import RequestError
from sempa_mlx.serve.replies import error_reply

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
OPEN_PATHS = ("/health",)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server bound to `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_host(name: str) -> bool:
    """Tell whether a text can be a host's name or address, without scheme, port and wildcards."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return bool(re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?", name))
    return True


def host_name(host: str) -> str:
    """Return how a `Host` header names a host: IPv6 addresses in brackets, lower case."""
    name = host.lower()
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


class Guard:
    """Checks host, origin, key and content type before anything of a body is read."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], api_key: str | None) -> None:
        """Let requests through to `app` that name one of `hosts` and, if set, the key."""
        self._app = app
        self._hosts = {host_name(host) for host in (*LOOPBACK_NAMES, *hosts) if host}
        self._key = None if api_key is None else _digest(api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that breaks a rule; pass on any other."""
        if scope["type"] == "http":
            fault = self._fault(Request(scope))
            if fault is not None:
                await error_reply(fault)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _fault(self, request: Request) -> RequestError | None:
        if not self._is_known(request.headers.get("host", "")):
            what = "the Host header names no host of this server; --allow-host adds one"
            return RequestError(403, what, kind="permission_error", code="host_not_allowed")
        origin = request.headers.get("origin")
        if origin is not None and not self._is_known(origin.partition("://")[2]):
            what = "requests of web pages from elsewhere are not answered"
            return RequestError(403, what, kind="permission_error", code="origin_not_allowed")
        if self._key is not None and request.url.path not in OPEN_PATHS:
            fault = self._key_fault(request)
            if fault is not None:
                return fault
        return _content_fault(request) if request.method == "POST" else None

    def _is_known(self, authority: str) -> bool:
        """Tell whether `name:port` names a host of this server, at whatever port."""
        name = authority.lower()
        if not name.endswith("]"):
            before, colon, port = name.rpartition(":")
            name = before if colon and port.isdecimal() else name
        return name in self._hosts

    def _key_fault(self, request: Request) -> RequestError | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # Digests are of one length, so that the time tells nothing of the key's.
        given = _digest(key.strip().encode("latin-1", "replace"))
        if hmac.compare_digest(given, self._key or b"") and scheme.lower() == "bearer":
            return None
        what = "a key is needed: send `Authorization: Bearer KEY`"
        headers = {"www-authenticate": "Bearer"}
        kind = "authentication_error"
        return RequestError(401, what, kind=kind, code="invalid_api_key", headers=headers)


def _content_fault(request: Request) -> RequestError | None:
    """A page may send other types without asking first, so only JSON is taken."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        return RequestError(415, "the content type must be application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        return RequestError(415, "compressed bodies are not taken")
    return None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
