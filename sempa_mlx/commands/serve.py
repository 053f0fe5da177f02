"""`sempa-mlx serve`."""

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sempa_mlx.commands.chosen_encoder import load_encoder
from sempa_mlx.commands.embed import EmbedRequest
from sempa_mlx.commands.signals import stop_requests
from sempa_mlx.console import Console
from sempa_mlx.errors import Problem, UsageError

if TYPE_CHECKING:
    from sempa_mlx.serve.served import Served

KEY_VARIABLE = "SEMPA_API_KEY"
PACKAGES = ("starlette", "uvicorn")
LEAST_KEY = 16


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """What to serve, where, to whom and how; None leaves it to defaults and the run folder."""

    embed: EmbedRequest
    host: str
    port: int
    api_key: str | None
    api_key_file: Path | None
    allow_hosts: tuple[str, ...]
    name: str | None
    timeout: float
    batch_tokens: int
    batching: bool


def run_serve(console: Console, request: ServeRequest) -> None:
    """Serve until a signal comes; ends the program with 130 or 143."""
    _require_packages()
    api_key = _find_key(console, request)
    _check_host(request.host, api_key)
    _check_names(request.allow_hosts)

    from sempa_mlx.serve.limits import Batching, Limits
    from sempa_mlx.serve.server import listen, url_of
    from sempa_mlx.serve.service import Service, serve

    with listen(request.host, request.port) as taken, stop_requests() as stop:
        service = Service(
            load_encoder(console, request.embed),
            request.name,
            (request.host, *request.allow_hosts),
            api_key,
            Limits(request_seconds=request.timeout),
            Batching(request.batch_tokens)
            if request.batching
            else Batching(request.batch_tokens, requests=1, chats=1),
        )
        url = url_of(taken)
        serve(
            service,
            taken,
            log=console.say,
            should_stop=stop,
            on_ready=lambda served: _tell(console, url, served, has_key=api_key is not None),
        )
    console.say("stopped")
    sys.exit(stop.exit_code)


def _require_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        what = f"the extra `serve` is not installed ({', '.join(missing)})"
        raise UsageError(Problem(what, fix="pip install 'sempa-mlx[serve]'"))


def _find_key(console: Console, request: ServeRequest) -> str | None:
    """Return the key that clients have to show: the option's, the file's or the variable's."""
    if request.api_key is not None and request.api_key_file is not None:
        raise UsageError("--api-key and --api-key-file both give a key; keep one")
    if request.api_key is not None:
        fix = f"{KEY_VARIABLE} or --api-key-file hides it"
        console.warn(f"other users of this machine can see a key on the command line; {fix}")
        key, source = request.api_key, "--api-key"
    elif request.api_key_file is not None:
        key, source = _read_key(request.api_key_file), str(request.api_key_file)
    elif KEY_VARIABLE in os.environ:
        key, source = os.environ[KEY_VARIABLE], KEY_VARIABLE
    else:
        return None
    if len(key) < LEAST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        what = f"a key is at least {LEAST_KEY} ASCII characters without blanks"
        raise UsageError(Problem(what, source, fix=f"make one: openssl rand -hex {LEAST_KEY}"))
    return key


def _read_key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(Problem(f"the key cannot be read ({error})", str(path))) from error


def _check_host(host: str, api_key: str | None) -> None:
    from sempa_mlx.serve.guard import is_loopback

    if not is_loopback(host) and api_key is None:
        what = "a server that other machines reach needs a key"
        fix = f"set {KEY_VARIABLE}, or leave out --host"
        raise UsageError(Problem(what, f"--host {host}", fix=fix), state="nothing was started")


def _check_names(hosts: tuple[str, ...]) -> None:
    from sempa_mlx.serve.guard import is_host

    faults = [
        Problem(f"--allow-host: `{host}` is no name of a host", fix="such as my-machine.local")
        for host in hosts
        if not is_host(host)
    ]
    if faults:
        raise UsageError(faults, state="nothing was started")


def _tell(console: Console, url: str, served: "Served", *, has_key: bool) -> None:
    """Say where the server is and what it has."""
    facts = {
        "embeddings": served.embedding_id,
        "chat": ", ".join(served.chat_ids),
        "key": "needed" if has_key else "none; this machine only",
    }
    console.facts(facts)
    console.say("Ctrl-C stops it; one line a request follows")
    console.result(url)
    chats = list(served.chat_ids)
    models = {"embeddings": served.embedding_id, "chat": chats}
    console.document({"url": url, "models": models, "api_key": has_key})
