"""Servers on a tiny model: the application by itself, or on a port of loopback."""

import contextlib
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
from starlette.testclient import TestClient

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.model.lora import dialled
from sempa_mlx.serve.access import bug_report
from sempa_mlx.serve.app import make_app
from sempa_mlx.serve.engine import Engine
from sempa_mlx.serve.inference_thread import inference_thread
from sempa_mlx.serve.limits import Batching, Limits
from sempa_mlx.serve.served import served_by
from sempa_mlx.serve.server import Server, ServerConfig, listen
from sempa_mlx.serve.worker import Worker
from tests.tiny import put_adapter, tiny_loaded

NAME = "tiny-llama"
BASE, ADAPTED, EMBED = NAME, f"{NAME}:sempa", f"{NAME}:embed"
JSON = {"content-type": "application/json"}
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
SECONDS = 20  # enough for anything here, on a busy machine


def adapted_encoder(kind="llama"):
    loaded = tiny_loaded(kind)
    put_adapter(loaded.model)
    return Encoder(loaded, EncoderSettings(max_tokens=64))


class Gate:
    """Holds calls of a method of the worker until it is opened, and keeps their arguments."""

    def __init__(self, worker, name):
        self._method = getattr(worker, name)
        self._open = threading.Event()
        self.reached = threading.Event()
        self.calls = []
        setattr(worker, name, self)

    def __call__(self, *arguments):
        self.calls.append(arguments)
        self.reached.set()
        assert self._open.wait(SECONDS)
        return self._method(*arguments)

    def open(self):
        self._open.set()


@dataclass
class House:
    """A server that runs: its parts, its log, and how to reach it."""

    encoder: Encoder
    worker: Worker
    log: list = field(default_factory=list)
    client: TestClient | None = None
    port: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def post(self, path, document, **headers):
        return self.client.post(path, json=document, headers=headers)

    def ask(self, method, path, document=None, **headers):
        """Ask over a connection of its own; return status, headers and document."""
        with contextlib.closing(self.connection()) as connection:
            body = None if document is None else json.dumps(document)
            connection.request(method, path, body, JSON | headers)
            reply = connection.getresponse()
            return reply.status, reply.headers, json.loads(reply.read())

    def requests(self):
        """How many requests are in the house."""
        if self.client is not None:
            return self.client.get("/health").json()["requests"]
        return self.ask("GET", "/health")[2]["requests"]

    def wait_for(self, count):
        """Wait until so many requests are in the house."""
        end = time.monotonic() + SECONDS
        while self.requests() != count:
            assert time.monotonic() < end
            time.sleep(0.01)

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)

    def socket(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)

    def greedy(self, asked, count, factor):
        """What the model says to a question or a conversation, one whole forward pass a token."""
        tokenizer, model = self.encoder.loaded.tokenizer, self.encoder.loaded.model
        turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        tokens = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
        start = len(tokens)
        with dialled(model, factor):
            while len(tokens) < start + count:
                best = int(np.argmax(np.array(model(mx.array([tokens])))[0, -1]))
                if best == tokenizer.eos_token_id:
                    break
                tokens.append(best)
        return tokenizer.decode(tokens[start:], skip_special_tokens=True)


@contextlib.contextmanager
def _engine(encoder, limits, batching, *, name=None, **options):
    encoder = encoder or adapted_encoder()
    worker = Worker(encoder, limits, batching)
    house = House(encoder, worker)
    with inference_thread() as thread:
        thread.submit(worker.warm_up).result()
        engine = Engine(
            worker, thread, batching, on_bug=lambda error: house.log.append(bug_report(error))
        )
        served = served_by(worker, name)
        app = make_app(engine, served, limits, log=house.log.append, **options)
        yield house, engine, app


@contextlib.contextmanager
def application(encoder=None, limits=None, batching=None, **options):
    """The application without a socket."""
    with (
        _engine(encoder, limits or Limits(), batching or Batching(), **options) as (house, _, app),
        TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as client,
    ):
        house.client = client
        yield house


@contextlib.contextmanager
def server(encoder=None, limits=None, batching=None, **options):
    """The whole server, on a free port of 127.0.0.1."""
    limits = limits or Limits()
    with (
        listen("127.0.0.1", 0) as taken,
        _engine(encoder, limits, batching or Batching(), **options) as (house, engine, app),
    ):
        ready = threading.Event()
        runs = Server(ServerConfig(app, limits), engine, house.stop.is_set, ready.set)
        house.port = taken.getsockname()[1]
        house.thread = threading.Thread(target=runs.run, kwargs={"sockets": [taken]})
        house.thread.start()
        try:
            assert ready.wait(SECONDS)
            yield house
        finally:
            house.stop.set()
            house.thread.join(SECONDS)
            assert not house.thread.is_alive()


def at_once(send, bodies):
    """Send bodies at the same time, a thread each; return a function that waits for answers."""
    pool = ThreadPoolExecutor(max_workers=len(bodies))
    answers = [pool.submit(send, body) for body in bodies]
    pool.shutdown(wait=False)
    return lambda: [answer.result(SECONDS) for answer in answers]


def asking(content, **fields):
    """The body of a greedy chat."""
    message = {"role": "user", "content": content}
    return {"model": BASE, "messages": [message], "temperature": 0, "max_tokens": 12} | fields


def events(text):
    """The events of a stream, parsed; the last one is the end mark."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def said(chunks):
    """The text of a stream's events."""
    return "".join(
        choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]
    )


def error_of(document):
    """The error in an answer, which has the fields of OpenAI's and no others."""
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["message"]
    return document["error"]
