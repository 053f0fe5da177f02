"""uvicorn around the application: the socket, time limits on connections, and a graceful end.

uvicorn bounds idle connections after an answer, not how long a first byte, a head or a client that
does not read may take. `TimedProtocol` does.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.serve.engine import Engine
from sempa_mlx.serve.faults import bad_request
from sempa_mlx.serve.limits import Limits

BACKLOG = 128
HEAD_BYTES = 32 * 1024


def listen(host: str, port: int) -> socket.socket:
    """Take a port; 0 takes any free one.

    Raises:
        UsageError: it is taken or not allowed, or the host is none of this machine.
    """
    place = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # the latter of names that no host can have
        reason = getattr(error, "strerror", None) or error
        raise UsageError(Problem(f"no such host ({reason})", place)) from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(BACKLOG)  # now, so that a second server finds out before it loads its model
    except OSError as error:
        taken.close()
        fix = "name another --port, or --port 0 for a free one"
        problem = Problem(f"cannot listen there: {error.strerror or error}", place, fix=fix)
        raise UsageError(problem, state="nothing was started") from error
    return taken


def url_of(taken: socket.socket) -> str:
    """Return the base URL that clients of a socket use."""
    host, port = taken.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


class TimedProtocol(H11Protocol):
    """uvicorn's protocol with bounds on heads, and on clients that do not read.

    A connection has `head_seconds` for each head; bodies and answers have limits of their own.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a head."""
        self._limits: Limits = self.config.limits  # type: ignore[attr-defined]  # of ServerConfig
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a head that is whole ends the wait for it."""
        super().data_received(data)
        self._note_head()

    def on_response_complete(self) -> None:
        """Wait for the next head, if it is not there already."""
        self._wait_for_head()
        super().on_response_complete()
        self._note_head()

    def pause_writing(self) -> None:
        """Begin to wait for a client to read."""
        self._write_timer = self.loop.call_later(self._limits.write_seconds, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has read."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, in the shape of all errors; hang up if an answer has begun."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        body = json.dumps(bad_request(msg.lower().rstrip(".")).document()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        head = h11.Response(status_code=400, headers=[*headers, ("connection", "close")])
        for part in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def _note_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_head_timer()

    def _wait_for_head(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(self._limits.head_seconds, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_timers(self) -> None:
        self._stop_head_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()


class ServerConfig(uvicorn.Config):
    """uvicorn's settings: HTTP/1.1 alone, no trust in proxies' headers, no log of its own."""

    def __init__(self, app: Starlette, limits: Limits) -> None:
        """Serve an application under limits."""
        super().__init__(
            app,
            http=TimedProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=HEAD_BYTES,
            timeout_keep_alive=max(1, int(limits.head_seconds)),
            timeout_graceful_shutdown=int(limits.stop_seconds) + 2,
        )
        self.limits = limits


class Server(uvicorn.Server):
    """uvicorn's server, stopped by whoever is asked, and never longer than its limits allow."""

    def __init__(
        self,
        config: ServerConfig,
        engine: Engine,
        should_stop: Callable[[], bool],
        on_ready: Callable[[], None],
    ) -> None:
        """Look at `should_stop` ten times a second; call `on_ready` once, when it answers."""
        super().__init__(config)
        self._engine = engine
        self._stop_seconds = config.limits.stop_seconds
        self._should_stop = should_stop
        self._on_ready = on_ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the caller."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell."""
        await super().startup(sockets)
        self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        """Tell whether to stop."""
        return self._should_stop() or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests finish; answer 503 to those that take too long."""
        loop = asyncio.get_running_loop()
        bound = loop.call_later(self._stop_seconds, self._engine.stop)
        await super().shutdown(sockets)
        bound.cancel()
