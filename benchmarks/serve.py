"""What dynamic batching gains, what a chat costs its neighbours, and whether memory stays flat.

    python benchmarks/serve.py [--clients 1 8 32] [--requests 160] [--rounds 3] [--flat 5000]

Two servers run beside each other, one as it is and one with --no-batching; all traffic goes over
loopback, a keep-alive connection a client, one text a request, and a client sends its next request
when the last is answered. Texts are the sentences of the demo data. Ways run alternately.

  embeddings   requests a second, and the time of one (p50, p99), for each number of clients
  chat         tokens a second of a stream, and the time of embeddings beside it
  memory       resident memory of the server over `--flat` requests of 8 clients
"""

import argparse
import http.client
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import urlsplit

import numpy as np

from sempa_mlx import runtime

JSON = {"content-type": "application/json"}
WAYS = {"batching": [], "no batching": ["--no-batching"]}
FLAT_CLIENTS = 8
FLAT_POINTS = 20
CHAT_TOKENS = 200


@dataclass(frozen=True)
class Running:
    """A server process."""

    port: int
    pid: int

    def connect(self) -> http.client.HTTPConnection:
        """Open a connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def memory_mb(self) -> float:
        """Return the resident memory; on a GPU its own is not in it."""
        shown = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, check=True
        )
        return int(shown.stdout) / 1024


@contextmanager
def server(model: str, *options: str) -> Iterator[Running]:
    """Run a server on a free port."""
    command = [sys.executable, "-m", "sempa_mlx", "serve", "--quiet", "--port", "0"]
    command += ["--model", model, "--name", "bench", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Running(urlsplit(process.stdout.readline()).port or 0, process.pid)
        finally:
            process.terminate()


def demo_texts() -> list[str]:
    """Return the sentences of the packaged demo data."""
    lines = files("sempa_mlx.data.demo").joinpath("triplets.jsonl").read_text("utf-8").splitlines()
    return [text for line in lines for text in json.loads(line).values()]


def embed(connection: http.client.HTTPConnection, text: str) -> float:
    """Send a request; return how long its answer took, in milliseconds."""
    body = json.dumps({"model": "bench", "input": text, "encoding_format": "base64"})
    start = time.perf_counter()
    connection.request("POST", "/v1/embeddings", body, JSON)
    reply = connection.getresponse()
    content = reply.read()
    if reply.status != 200:
        raise SystemExit(f"{reply.status}: {content.decode()[:300]}")
    return 1000 * (time.perf_counter() - start)


def load(running: Running, texts: Iterator[str], clients: int, requests: int) -> tuple[float, list]:
    """Send requests from so many clients; return seconds in all, and milliseconds of each."""
    times: list[float] = []
    left = iter(range(requests))

    def send() -> None:
        connection = running.connect()
        for _ in left:
            times.append(embed(connection, next(texts)))
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, times


def percentiles(times: list[float]) -> dict[str, float]:
    return {name: round(float(np.percentile(times, at)), 1) for name, at in P.items()}


P = {"p50_ms": 50, "p99_ms": 99}


def measure_embeddings(
    servers: dict[str, Running], texts: Iterator[str], arguments: argparse.Namespace
) -> list[dict[str, object]]:
    """Time both servers under each number of clients."""
    rows: list[dict[str, object]] = []
    for clients in arguments.clients:
        found: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in servers}
        for number in range(arguments.rounds + 1):
            for way, running in servers.items():
                seconds, times = load(running, texts, clients, arguments.requests)
                if number:  # the first round warms up
                    found[way][0].append(arguments.requests / seconds)
                    found[way][1].extend(times)
                say(f"{clients} clients, {way}: {arguments.requests / seconds:.1f} requests/s")
        rates = {way: float(np.median(each[0])) for way, each in found.items()}
        rows.append(
            {
                "clients": clients,
                **{
                    way: {"requests_per_second": round(rates[way], 1)} | percentiles(each[1])
                    for way, each in found.items()
                },
                "gain": round(rates["batching"] / rates["no batching"], 2),
            }
        )
    return rows


def stream_chat(running: Running, done: threading.Event) -> float:
    """Stream an answer; return tokens a second between its first and its last."""
    connection = running.connect()
    message = {"role": "user", "content": "Tell me a long story about a dog and the sea."}
    body = {"model": "bench", "messages": [message], "max_tokens": CHAT_TOKENS, "seed": 1}
    connection.request("POST", "/v1/chat/completions", json.dumps(body | {"stream": True}), JSON)
    times = [
        time.perf_counter()
        for line in connection.getresponse()
        if line.startswith(b"data: {") and b'"content": "' in line
    ][1:]
    done.set()
    connection.close()
    return (len(times) - 1) / (times[-1] - times[0])


def measure_chat(running: Running, texts: Iterator[str]) -> dict[str, object]:
    """Time a chat alone, embeddings alone, and both at once."""
    alone = stream_chat(running, threading.Event())
    _, times = load(running, texts, 1, 40)
    done, beside = threading.Event(), []
    rate: list[float] = []
    chat = threading.Thread(target=lambda: rate.append(stream_chat(running, done)))
    chat.start()
    connection = running.connect()
    while not done.is_set():
        beside.append(embed(connection, next(texts)))
    chat.join()
    return {
        "chat_alone_tokens_per_second": round(alone, 1),
        "chat_beside_embeddings_tokens_per_second": round(rate[0], 1),
        "embedding_alone": percentiles(times),
        "embedding_beside_chat": percentiles(beside) | {"requests": len(beside)},
    }


def measure_memory(running: Running, texts: Iterator[str], requests: int) -> dict[str, object]:
    """Watch resident memory over many requests, after those that came before."""
    curve = [round(running.memory_mb(), 1)]
    part = max(1, requests // FLAT_POINTS)
    seconds = 0.0
    for _ in range(FLAT_POINTS):
        seconds += load(running, texts, FLAT_CLIENTS, part)[0]
        curve.append(round(running.memory_mb(), 1))
        say(f"{part * (len(curve) - 1)} requests: {curve[-1]:.0f} MB")
    half = len(curve) // 2
    return {
        "requests": part * FLAT_POINTS,
        "clients": FLAT_CLIENTS,
        "requests_per_second": round(part * FLAT_POINTS / seconds, 1),
        "resident_mb": curve,
        "growth_of_second_half_mb": round(curve[-1] - curve[half], 1),
    }


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure everything in one run."""
    texts = itertools.cycle(demo_texts())
    document: dict[str, object] = {"model": arguments.model, "rounds": arguments.rounds}
    with ExitStack() as stack:
        servers = {
            way: stack.enter_context(server(arguments.model, *options))
            for way, options in WAYS.items()
        }
        document["requests_a_round"] = arguments.requests
        document["embeddings"] = measure_embeddings(servers, texts, arguments)
        document["chat"] = measure_chat(servers["batching"], texts)
        document["memory"] = measure_memory(servers["batching"], texts, arguments.flat)
    return document | {
        "matmul_gflops": round(runtime.matmul_gflops(), 1),
        "machine": str(runtime.machine()),
        "versions": runtime.package_versions(),
    }


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=160, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flat", type=int, default=5000, help="requests while memory is watched")
    sys.stdout.write(json.dumps(measure(parser.parse_args()), indent=2) + "\n")
