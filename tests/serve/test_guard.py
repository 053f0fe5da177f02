"""Who may ask: names of hosts, origins, keys, types of content, and bodies that are no requests."""

import asyncio
import json

import pytest
from starlette.requests import Request

from sempa_mlx.serve.body import read_json
from sempa_mlx.serve.faults import RequestError
from sempa_mlx.serve.guard import is_host, is_loopback
from sempa_mlx.serve.limits import Limits
from tests.serve.house import (
    CHAT,
    EMBED,
    EMBEDDINGS,
    JSON,
    application,
    asking,
    error_of,
)

KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def house():
    with application(hosts=("my-machine.local", "fe80::1")) as house:
        yield house


@pytest.fixture(scope="module")
def locked():
    with application(api_key=KEY) as house:
        yield house


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8080", "127.0.0.1:1", "[::1]:8080", "my-machine.local", "[fe80::1]"],
)
def test_hosts_of_this_machine_are_answered(house, host):
    assert house.client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "evil.example:8080", "127.0.0.1.evil"),
        *("localhost@evil.example", "localhost:80:80", "[::1].evil", "127.0.0.2", "", "::1"),
    ],
)
@pytest.mark.parametrize("path", ["/health", "/v1/models", EMBEDDINGS])
def test_foreign_hosts_are_not(house, host, path):
    """What DNS rebinding needs: the page's own name in `Host`."""
    reply = house.client.get(path, headers={"host": host})
    assert reply.status_code == 403
    assert error_of(reply.json())["code"] == "host_not_allowed"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil"])
def test_foreign_pages_are_not_answered(house, origin):
    reply = house.post(EMBEDDINGS, {"model": EMBED, "input": "a"}, origin=origin)
    assert reply.status_code == 403
    assert error_of(reply.json())["code"] == "origin_not_allowed"


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://evil.example"])
@pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST"])
def test_no_page_is_allowed_to_read(house, origin, method):
    asked = {"origin": origin, "access-control-request-method": "POST"}
    for path in (EMBEDDINGS, "/v1/models"):
        reply = house.client.request(method, path, headers=asked)
        assert not [name for name in reply.headers if name.startswith("access-control")]
    if method == "OPTIONS":
        assert reply.status_code in (403, 405)
        error_of(reply.json())


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        JSON | {"content-encoding": "gzip"},
    ],
)
def test_only_json_is_taken(house, headers):
    body = json.dumps({"model": EMBED, "input": "a"}).encode()
    reply = house.client.post(EMBEDDINGS, content=body, headers=headers)
    assert reply.status_code == 415
    error_of(reply.json())


def test_json_with_a_character_set_is_taken(house):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    body = json.dumps({"model": EMBED, "input": "a"})
    assert house.client.post(EMBEDDINGS, content=body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "shown",
    [None, "Bearer ", f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer \xff"],
)
def test_without_the_key_nothing_is_answered(locked, shown):
    headers = {} if shown is None else {"authorization": shown.encode("latin-1")}
    reply = locked.client.get("/v1/models", headers=headers)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert error_of(reply.json())["code"] == "invalid_api_key"


def test_with_the_key_everything_is(locked):
    for scheme in ("Bearer", "bearer"):
        headers = {"authorization": f"{scheme} {KEY}"}
        assert locked.client.get("/v1/models", headers=headers).status_code == 200
    assert locked.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xff\xfe", b"nope", b"NaN", b'{"input": Infinity}', b"[" * 100_000),
        *('{"model": "x"}'.encode("utf-16"), b'"text"', b"[]", b"1" * 10_000),
    ],
    ids=lambda body: repr(body[:12]),
)
@pytest.mark.parametrize("path", [EMBEDDINGS, CHAT])
def test_what_is_no_object_of_json_is_refused(house, path, body):
    reply = house.client.post(path, content=body, headers=JSON)
    assert reply.status_code == 400
    error_of(reply.json())


def test_bodies_are_counted_while_they_are_read():
    """However long a body is, no more of it is taken than shows that it is too long."""
    taken = 0

    async def receive():
        nonlocal taken
        taken += 1000
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    with pytest.raises(RequestError) as refusal:
        asyncio.run(read_json(request, Limits(body_bytes=5000)))
    assert refusal.value.status == 413
    assert taken == 6000


def test_a_body_that_says_it_is_too_long_is_not_read():
    with application(limits=Limits(body_bytes=5000)) as house:
        for length in ("5001", "9" * 30):
            headers = JSON | {"content-length": length}
            reply = house.client.post(EMBEDDINGS, content=b"{}", headers=headers)
            assert reply.status_code == 413
            error_of(reply.json())


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/embeddings/", "/docs", "/v1/models/other"])
def test_other_paths_are_not_found(house, path):
    reply = house.client.get(path)
    assert reply.status_code == 404
    error_of(reply.json())


def test_models_are_listed_and_described(house):
    models = house.client.get("/v1/models").json()
    assert models["object"] == "list"
    names = [each["id"] for each in models["data"]]
    assert names == ["tiny-llama", "tiny-llama:sempa", "tiny-llama:embed"]
    for each in models["data"]:
        assert house.client.get(f"/v1/models/{each['id']}").json() == each


def test_the_log_has_no_texts_and_no_keys(locked):
    headers = {"authorization": f"Bearer {KEY}"}
    for path, body in (
        (EMBEDDINGS, {"model": EMBED, "input": "secret words"}),
        (EMBEDDINGS, {"model": "secret", "input": "secret words"}),
        (CHAT, asking("secret words")),
        (CHAT, asking("secret words", stream=True)),
        (CHAT, {"secret": "words"}),
    ):
        locked.client.post(f"{path}?secret=words", json=body, headers=headers)
    locked.client.get("/secret/words", headers={"authorization": "Bearer secret"})
    locked.client.request("SECRET", "/words")
    lines = "\n".join(locked.log)
    for path in (EMBEDDINGS, CHAT):
        assert f"POST {path} 200" in lines
    assert "inputs 1  tokens " in lines
    for word in ("secret", "words", KEY):
        assert word not in lines.lower()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("my-machine.local", "a_b", "b.c.", "10.0.0.2", "::1", "[::1]")),
        *(
            (name, False)
            for name in ("my.local:8080", "https://b.local", "*", "*.local", "", "a b")
        ),
    ],
)
def test_names_of_hosts_are_told_from_the_rest(name, expected):
    assert is_host(name) is expected


def test_an_empty_host_is_none_of_this_server():
    with application(hosts=("",)) as house:
        assert house.client.get("/health", headers={"host": ""}).status_code == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.1.2", "my-machine", "")),
    ],
)
def test_loopback_is_told_from_the_rest(host, expected):
    assert is_loopback(host) is expected
