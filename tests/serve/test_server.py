"""A real server on loopback: slow and rude clients, many at once, and the end."""

import contextlib
import json
import socket
import threading
import time

import numpy as np
import pytest

from sempa_mlx.errors import UsageError
from sempa_mlx.serve.limits import Limits
from sempa_mlx.serve.server import listen
from sempa_mlx.serve.service import Service, serve
from tests.serve.house import (
    CHAT,
    EMBED,
    EMBEDDINGS,
    JSON,
    SECONDS,
    Gate,
    House,
    adapted_encoder,
    asking,
    at_once,
    error_of,
    server,
)

QUICK = Limits(head_seconds=0.5, body_seconds=0.5, stop_seconds=0.5)


@pytest.fixture(autouse=True)
def allowed(loopback):
    """Every test here connects to its own server."""


@pytest.fixture(scope="module")
def house():
    with server() as house:
        yield house


@pytest.fixture(scope="module")
def quick():
    with server(limits=QUICK) as house:
        yield house


def head(length, **headers):
    """The head of an embedding request whose body has so many bytes."""
    lines = ["POST /v1/embeddings HTTP/1.1", "host: localhost", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {length}"] if length is not None else []
    return "\r\n".join([*lines, "", ""]).encode()


def answer(connection):
    """Read until the server closes, or one whole answer is there; return status and body."""
    received = b""
    while b"\r\n\r\n" not in received:
        more = connection.recv(65536)
        if not more:
            return None, received
        received += more
    top, _, body = received.partition(b"\r\n\r\n")
    lengths = [line for line in top.lower().split(b"\r\n") if line.startswith(b"content-length")]
    while len(body) < int(lengths[0].split(b":")[1]):
        body += connection.recv(65536)
    return int(top.split(b" ")[1]), json.loads(body)


def embed(house, given, model=EMBED):
    return house.ask("POST", EMBEDDINGS, {"model": model, "input": given})


def test_fifty_clients_get_each_their_own_vectors(house):
    inputs = [[f"text {number}", "a" * (number % 7)] for number in range(50)]
    replies = at_once(lambda given: embed(house, given), inputs)()
    assert {status for status, _, _ in replies} == {200}
    found = np.array([[row["embedding"] for row in body["data"]] for _, _, body in replies])
    expected = np.stack([house.encoder.encode(given) for given in inputs])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_connection_serves_one_request_after_the_other(house):
    connection = house.connection()
    for number in range(3):
        body = json.dumps({"model": EMBED, "input": str(number)})
        connection.request("POST", EMBEDDINGS, body, JSON)
        assert json.loads(connection.getresponse().read())["object"] == "list"
    connection.close()


def test_a_body_that_is_too_large_is_refused_while_it_comes(house):
    with house.socket() as connection:
        connection.sendall(head(1 << 30))
        status, document = answer(connection)
    assert status == 413
    error_of(document)
    with house.socket() as connection:
        connection.sendall(head(None, **{"transfer-encoding": "chunked"}))
        piece = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
        for _ in range(12):
            connection.sendall(piece)
        assert answer(connection)[0] == 413
    assert embed(house, "a")[0] == 200


def test_what_is_no_http_is_refused(house):
    for rubbish in (
        b"hello\r\n\r\n",
        b"\x16\x03\x01" + b"\x00" * 200 + b"\r\n\r\n",
        head("many"),
        head(-1),
    ):
        with house.socket() as connection:
            connection.sendall(rubbish)
            status, document = answer(connection)
            assert status == 400
            error_of(document)
    with house.socket() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 70_000)
        assert answer(connection)[0] == 400


def test_a_slow_body_is_given_up_and_others_are_served(quick):
    with quick.socket() as connection:
        connection.sendall(head(100) + b'{"model"')
        assert embed(quick, "meanwhile")[0] == 200
        status, document = answer(connection)
        assert status == 408
        assert error_of(document)["code"] == "timeout"
        assert connection.recv(1) == b"", "and the connection is closed"


@pytest.mark.parametrize("begun", [b"", b"POST /v1/emb", head(5)[:-2]])
def test_a_slow_head_is_given_up(quick, begun):
    with quick.socket() as connection:
        connection.sendall(begun)
        assert connection.recv(1) == b""


def test_an_idle_connection_is_closed(quick):
    body = json.dumps({"model": EMBED, "input": "a"}).encode()
    with quick.socket() as connection:
        connection.sendall(head(len(body)) + body)
        assert answer(connection)[0] == 200
        connection.sendall(head(5)[:20])
        assert connection.recv(1) == b""


def test_requests_sent_without_waiting_are_answered_in_order(house):
    bodies = [json.dumps({"model": EMBED, "input": text}).encode() for text in ("a", "b b")]
    with house.socket() as connection:
        connection.sendall(b"".join(head(len(body)) + body for body in bodies))
        for given in ("a", "b b"):
            status, document = answer(connection)
            assert status == 200
            found = np.array([document["data"][0]["embedding"]])
            np.testing.assert_allclose(found, house.encoder.encode([given]), atol=1e-5)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_place(stream):
    """And ends its chat, long before that would have ended."""
    with server(limits=Limits(requests=1)) as house:
        steps = Gate(house.worker, "step")
        connection = house.connection()
        body = asking("a", max_tokens=4000, stream=stream, temperature=1.0, seed=1)
        connection.request("POST", CHAT, json.dumps(body), JSON)
        assert steps.reached.wait(SECONDS)
        assert house.requests() == 1
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        house.wait_for(0)
        steps.open()
        assert embed(house, "a")[0] == 200
        end = time.monotonic() + SECONDS
        while not any(gone for _, gone in steps.calls):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert len(steps.calls) < 100


def test_a_client_that_goes_frees_the_queue():
    with server() as house:
        gate = Gate(house.worker, "embed")
        first = at_once(lambda given: embed(house, given), ["first"])
        assert gate.reached.wait(SECONDS)
        connection = house.connection()
        body = json.dumps({"model": EMBED, "input": "nobody waits"})
        connection.request("POST", EMBEDDINGS, body, JSON)
        house.wait_for(2)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        house.wait_for(1)
        gate.open()
        assert first()[0][0] == 200
        assert embed(house, "last")[0] == 200
        assert "nobody waits" not in [text for (texts,) in gate.calls for text in texts]


def test_what_runs_when_the_server_stops_is_finished():
    with server() as house:
        gate = Gate(house.worker, "embed")
        wait = at_once(lambda given: embed(house, given), ["a", "b", "c"])
        assert gate.reached.wait(SECONDS)
        house.wait_for(3)
        house.stop.set()
        refused = None
        end = time.monotonic() + SECONDS
        while refused is None and time.monotonic() < end:
            try:
                house.socket().close()
            except OSError as error:
                refused = error
        assert isinstance(refused, ConnectionRefusedError), "nobody new is let in"
        gate.open()
        assert [status for status, _, _ in wait()] == [200, 200, 200]
        house.thread.join(SECONDS)
        assert not house.thread.is_alive()


def test_what_takes_too_long_when_the_server_stops_is_told_so():
    with server(limits=QUICK) as house:
        gate = Gate(house.worker, "embed")
        wait = at_once(lambda given: embed(house, given), ["a", "b"])
        assert gate.reached.wait(SECONDS)
        house.wait_for(2)
        house.stop.set()
        for status, headers, document in wait():
            assert status == 503
            assert headers["retry-after"]
            assert "stopping" in error_of(document)["message"]
        gate.open()


def test_a_body_that_still_comes_when_the_server_stops_is_told_so():
    with server(limits=Limits(stop_seconds=0.5)) as house, house.socket() as connection:
        connection.sendall(head(100) + b'{"model"')
        house.wait_for(1)
        house.stop.set()
        status, document = answer(connection)
    assert status == 503
    assert "stopping" in error_of(document)["message"]


def test_a_stream_that_cannot_be_finished_ends_in_an_error():
    with server(limits=QUICK) as house:
        steps = Gate(house.worker, "step")
        replies = []

        def ask():
            connection = house.connection()
            connection.request("POST", CHAT, json.dumps(asking("a", stream=True)), JSON)
            replies.append(connection.getresponse().read().decode())
            connection.close()

        asker = threading.Thread(target=ask)
        asker.start()
        assert steps.reached.wait(SECONDS)
        house.stop.set()
        asker.join(SECONDS)
        steps.open()
    (text,) = replies
    assert "the server is stopping" in text
    assert "[DONE]" not in text


def test_a_log_that_nobody_reads_fails_no_request(loopback):
    def log(_line):
        raise BrokenPipeError

    encoder, statuses = adapted_encoder(), []
    house = House(encoder, None)

    def ask_twice():
        kept, encoder.encode_counted = encoder.encode_counted, None
        statuses.append(embed(house, "a", model="tiny")[0])
        encoder.encode_counted = kept
        statuses.append(embed(house, "a", model="tiny")[0])

    def begin(_served):
        house.thread = threading.Thread(target=ask_twice)
        house.thread.start()

    def is_done():
        return house.thread is not None and not house.thread.is_alive()

    with listen("127.0.0.1", 0) as taken:
        house.port = taken.getsockname()[1]
        serve(Service(encoder, "tiny"), taken, log=log, should_stop=is_done, on_ready=begin)
    assert statuses == [500, 200]


def test_after_an_early_answer_rubbish_only_ends_the_connection(house, caplog):
    with house.socket() as connection:
        lines = ("POST /v1/embeddings HTTP/1.1", "host: localhost", "transfer-encoding: chunked")
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert answer(connection)[0] == 415
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"zz\r\n\r\n")
            assert connection.recv(1000) == b""
    assert embed(house, "a")[0] == 200
    assert "Fatal error" not in caplog.text


def test_a_port_that_is_taken_is_told():
    with listen("127.0.0.1", 0) as taken, pytest.raises(UsageError, match="cannot listen") as told:
        listen("127.0.0.1", taken.getsockname()[1])
    (problem,) = told.value.problems
    assert "--port" in problem.fix
