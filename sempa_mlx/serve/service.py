"""A whole server: one encoder, its inference thread, the application and the socket."""

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.serve.access import bug_report
from sempa_mlx.serve.app import make_app
from sempa_mlx.serve.engine import Engine
from sempa_mlx.serve.inference_thread import inference_thread
from sempa_mlx.serve.limits import Batching, Limits
from sempa_mlx.serve.served import Served, served_by
from sempa_mlx.serve.server import Server, ServerConfig
from sempa_mlx.serve.worker import Worker


@dataclass(frozen=True, slots=True)
class Service:
    """What to serve, under which name, to whom, and how much of it.

    `hosts` may stand in `Host` beside the names of loopback; `name` replaces the model's own.
    """

    encoder: Encoder
    name: str | None = None
    hosts: tuple[str, ...] = ()
    api_key: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    batching: Batching = field(default_factory=Batching)


def serve(
    service: Service,
    taken: socket.socket,
    *,
    log: Callable[[str], None],
    should_stop: Callable[[], bool],
    on_ready: Callable[[Served], None],
) -> None:
    """Serve on a socket until told to stop; requests that run may finish within the limits.

    Args:
        service: what.
        taken: a socket that listens.
        log: takes the lines of the log; where it cannot write them they are lost.
        should_stop: looked at ten times a second.
        on_ready: called once the server answers.
    """

    def note(line: str) -> None:
        with suppress(OSError):  # nobody reads it, or its disk is full: no reason to fail
            log(line)

    worker = Worker(service.encoder, service.limits, service.batching)
    with inference_thread() as thread:
        thread.submit(worker.warm_up).result()
        engine = Engine(
            worker, thread, service.batching, on_bug=lambda error: note(bug_report(error))
        )
        served = served_by(worker, service.name)
        app = make_app(
            engine,
            served,
            service.limits,
            hosts=service.hosts,
            api_key=service.api_key,
            log=note,
        )
        config = ServerConfig(app, service.limits)
        Server(config, engine, should_stop, lambda: on_ready(served)).run(sockets=[taken])
