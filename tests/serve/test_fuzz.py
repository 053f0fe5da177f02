"""Whatever is sent, the answer has OpenAI's shape and is no fault of the server's.

`SEMPA_HYPOTHESIS_PROFILE=fuzz` tries many more examples, and new ones each time.
"""

import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.house import BASE, CHAT, EMBED, EMBEDDINGS, JSON, application, error_of, server

PATHS = (EMBEDDINGS, CHAT, "/v1/models", f"/v1/models/{BASE}", "/health")
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "BREW")
REFUSALS = (400, 401, 403, 404, 405, 408, 413, 415)


@pytest.fixture(scope="module")
def house():
    with application() as house:
        yield house
    assert not [line for line in house.log if "this is a bug" in line]


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
SMALL = st.integers(-2, 12) | st.floats(-1, 3) | st.booleans() | st.none()
TOKENS = st.lists(st.integers(-1, 400) | st.integers(), max_size=5)


def nearly(**fields):
    """A body whose fields are mostly right, and sometimes anything."""
    known = {name: st.just(right) | right_or_odd for name, (right, right_or_odd) in fields.items()}
    return st.fixed_dictionaries({}, optional=known) | st.dictionaries(
        st.text(max_size=5), ANY_JSON
    )


EMBEDDING_BODIES = nearly(
    model=(EMBED, ANY_JSON),
    input=("a", ANY_JSON | st.lists(st.text(), max_size=5) | TOKENS | st.lists(TOKENS, max_size=3)),
    dimensions=(3, SMALL),
    encoding_format=("base64", st.sampled_from(["float", "int", 1])),
    user=("me", ANY_JSON),
)
CONTENTS = st.text() | st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image_url"]), "text": st.text() | ANY_JSON}
    ),
    max_size=2,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"]), "content": CONTENTS}
    ),
    max_size=3,
)
CHAT_BODIES = nearly(
    model=(BASE, st.just(f"{BASE}:sempa") | ANY_JSON),
    messages=([{"role": "user", "content": "hi"}], MESSAGES | ANY_JSON),
    max_tokens=(2, st.integers(-1, 4) | ANY_JSON),
    temperature=(0, SMALL),
    top_p=(0.5, SMALL),
    stop=("x", ANY_JSON | st.lists(st.text(max_size=2), max_size=5)),
    seed=(1, st.integers() | ANY_JSON),
    stream=(True, SMALL),
    stream_options=({"include_usage": True}, ANY_JSON),
    n=(1, SMALL),
    tools=([], ANY_JSON),
)


@given(body=EMBEDDING_BODIES | ANY_JSON)
def test_any_embedding_body_is_answered_or_refused(house, body):
    check(house.client.post(EMBEDDINGS, content=json.dumps(body), headers=JSON))


@given(body=CHAT_BODIES | ANY_JSON)
def test_any_chat_body_is_answered_or_refused(house, body):
    if isinstance(body, dict):
        body.setdefault("max_tokens", 2)
    check(house.client.post(CHAT, content=json.dumps(body), headers=JSON))


RIGHT = {
    EMBEDDINGS: {"model": EMBED, "input": ["a", "b"], "encoding_format": "base64"},
    CHAT: {"model": BASE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
}


@given(path=st.sampled_from([EMBEDDINGS, CHAT]), data=st.data())
def test_a_right_body_with_wrong_bytes_is_answered_or_refused(house, path, data):
    body = json.dumps(RIGHT[path]).encode()
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, min(start + 8, len(body))))
    body = body[:start] + data.draw(st.binary(max_size=8)) + body[end:]
    check(house.client.post(path, content=body, headers=JSON))


HEADER_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["authorization", "content-encoding", "content-type", "host", "origin", "x-stainless-lang"]
    ),
    HEADER_TEXT | st.sampled_from(["localhost", "http://localhost", "application/json", "Bearer "]),
    max_size=3,
)


@given(
    method=st.sampled_from(METHODS),
    path=st.sampled_from(PATHS)
    | st.binary(max_size=12).map(lambda given: f"/v1/models/{quote(given)}")
    | st.binary(max_size=12).map(lambda given: f"/{quote(given)}"),
    headers=HEADERS,
    body=st.binary(max_size=40) | ANY_JSON.map(lambda given: json.dumps(given).encode()),
)
def test_any_request_to_any_path_is_answered_or_refused(house, method, path, headers, body):
    reply = house.client.request(method, path, content=body, headers=JSON | headers)
    assert not [name for name in reply.headers if name.startswith("access-control")]
    check(reply, has_body=method != "HEAD")


def check(reply, *, has_body=True):
    """Accept an answer, or a refusal of OpenAI's shape."""
    if reply.status_code == 200:
        assert '"error"' not in reply.text
        return
    assert reply.status_code in REFUSALS
    if has_body:
        error_of(reply.json())


@pytest.fixture(scope="module")
def listening():
    with server() as house:
        yield house


LINES = st.lists(
    st.sampled_from(
        [
            *(b"POST /v1/embeddings HTTP/1.1", b"GET /health HTTP/1.1", b"GET * HTTP/1.0"),
            *(b"host: localhost", b"host: evil.example", b"content-type: application/json"),
            *(b"content-length: 3", b"content-length: -1", b"transfer-encoding: chunked"),
            *(b"expect: 100-continue", b"upgrade: websocket", b"connection: upgrade", b"", b"ff"),
        ]
    )
    | st.binary(max_size=20),
    max_size=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES)
def test_any_bytes_on_the_wire_are_answered_or_refused(loopback, listening, lines):
    with listening.socket() as connection:
        connection.sendall(b"\r\n".join(lines))
        connection.shutdown(1)  # nothing more will come
        received = b""
        while more := connection.recv(65536):
            received += more
    for part in received.split(b"HTTP/1.1 ")[1:]:
        assert int(part[:3]) in (100, 200, *REFUSALS), received
