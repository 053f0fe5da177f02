"""`/v1/embeddings`: OpenAI's shape around the vectors of `Encoder.encode`."""

import base64
import json

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.errors import ModelError
from sempa_mlx.serve.limits import Batching, Limits
from tests.command import SENTENCES
from tests.serve.house import (
    ADAPTED,
    BASE,
    EMBED,
    EMBEDDINGS,
    JSON,
    SECONDS,
    Gate,
    adapted_encoder,
    application,
    at_once,
    error_of,
)

TEXTS = list(SENTENCES)


@pytest.fixture(scope="module")
def house():
    with application() as house:
        yield house


def vectors(reply):
    assert reply.status_code == 200, reply.text
    return np.array([each["embedding"] for each in reply.json()["data"]], dtype=np.float32)


def embed(house, **fields):
    return house.post(EMBEDDINGS, {"model": EMBED, "input": TEXTS} | fields)


def test_vectors_are_those_of_the_encoder_in_order(house):
    reply = embed(house)
    document = reply.json()
    assert (document["object"], document["model"]) == ("list", EMBED)
    assert [each["index"] for each in document["data"]] == list(range(len(TEXTS)))
    np.testing.assert_allclose(vectors(reply), house.encoder.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("name", [BASE, ADAPTED])
def test_every_name_of_the_model_embeds(house, name):
    expected = house.encoder.encode(TEXTS[:1])
    np.testing.assert_allclose(
        vectors(embed(house, model=name, input=TEXTS[0])), expected, atol=1e-5
    )


def test_base64_holds_little_endian_floats(house):
    data = embed(house, encoding_format="base64").json()["data"]
    found = np.stack([np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in data])
    np.testing.assert_array_equal(found, vectors(embed(house, encoding_format="float")))


def test_dimensions_cut_and_normalise_again(house):
    whole = house.encoder.encode(TEXTS)[:, :5]
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(embed(house, dimensions=5)), expected, atol=1e-5)


def test_token_ids_stand_for_their_text(house):
    tokenizer = house.encoder.loaded.tokenizer
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS if text]
    expected = house.encoder.encode([text for text in TEXTS if text])
    np.testing.assert_allclose(vectors(embed(house, input=ids)), expected, atol=1e-5)
    np.testing.assert_allclose(vectors(embed(house, input=ids[0])), expected[:1], atol=1e-5)


def test_usage_counts_the_tokens_of_texts_not_of_the_prompt_around(house):
    tokenizer = house.encoder.loaded.tokenizer
    ids = tokenizer.encode(TEXTS[0], add_special_tokens=False)
    usage = embed(house, input=TEXTS[0]).json()["usage"]
    assert usage == {"prompt_tokens": len(ids), "total_tokens": len(ids)}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [["a"]]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": None}, "input"),
        ({"input": [0, -1]}, "input"),
        ({"input": [[10**30]]}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"input": ["a"] * 10_000}, "input"),
        ({"input": "word " * 100}, "input"),
        ({"input": "a" * 100_000}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 33}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"encoding_format": {}}, "encoding_format"),
        ({"model": 3}, "model"),
        ({"model": ""}, "model"),
        ({"inputs": "a"}, "inputs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_embedded_is_refused(house, fields, param):
    body = json.dumps({"model": EMBED, "input": "a"} | fields)
    reply = house.client.post(EMBEDDINGS, content=body, headers=JSON)
    assert reply.status_code == 400
    assert error_of(reply.json())["param"] == param


def test_as_many_texts_as_can_be_are_taken_and_one_more_is_not(house):
    assert len(vectors(embed(house, input=["a"] * 256))) == 256
    reply = embed(house, input=["a"] * 257)
    assert reply.status_code == 400
    assert "at most 256 texts, not 257" in error_of(reply.json())["message"]


def test_all_faults_are_told_at_once(house):
    reply = house.post(EMBEDDINGS, {"input": [], "dimensions": -1, "color": 3})
    message = error_of(reply.json())["message"]
    for name in ("model", "input", "dimensions", "color"):
        assert f"`{name}`" in message


@pytest.mark.parametrize("name", ["gpt-4o", "../base", "/etc/passwd", f"{BASE}:other"])
def test_no_other_model_is_loaded(house, name):
    reply = embed(house, model=name)
    assert reply.status_code == 404
    assert error_of(reply.json())["code"] == "model_not_found"


def test_a_text_as_long_as_can_be_is_taken(house):
    """The bound counts the prompt: one token less than refused is embedded."""
    tokenizer = house.encoder.loaded.tokenizer
    count = next(n for n in range(1, 99) if embed(house, input=" cat" * n).status_code == 400)
    (row,) = house.encoder.tokenize([" cat" * (count - 1)])
    assert len(row) <= 64 < len(row) + len(tokenizer.encode(" cat", add_special_tokens=False))


def sending(house, *bodies):
    """Send inputs at the same time; return a function that waits for the answers."""
    return at_once(lambda given: embed(house, input=given), bodies)


@pytest.mark.parametrize("requests", [None, 1])
def test_requests_that_wait_share_a_batch_if_they_may(requests):
    inputs = [[text, f"{text} indeed"] for text in "abcdefgh"]
    with application(batching=Batching(requests=requests)) as house:
        gate = Gate(house.worker, "embed")
        first = sending(house, "the first")
        assert gate.reached.wait(SECONDS)
        rest = sending(house, *inputs)
        house.wait_for(9)
        gate.open()
        assert len(vectors(first()[0])) == 1
        for reply, given in zip(rest(), inputs, strict=True):
            np.testing.assert_allclose(vectors(reply), house.encoder.encode(given), atol=1e-5)
        sizes = [len(texts) for (texts,) in gate.calls]
    assert sizes == ([1, 16] if requests is None else [1] + 8 * [2])


def test_a_short_request_does_not_wait_for_a_long_one():
    with application(batching=Batching(tokens=64)) as house:
        gate = Gate(house.worker, "embed")
        long = sending(house, [f"line {number}" for number in range(30)])
        assert gate.reached.wait(SECONDS)
        short = sending(house, "short")
        house.wait_for(2)
        gate.open()
        assert len(vectors(short()[0])) == 1
        assert len(vectors(long()[0])) == 30
        turn = next(number for number, (texts,) in enumerate(gate.calls) if "short" in texts)
        assert turn == 1 < len(gate.calls) - 1, "it ran in the next batch, and others came after"


def test_of_many_long_requests_none_keeps_a_short_one_waiting():
    with application(batching=Batching(tokens=64)) as house:
        gate = Gate(house.worker, "embed")
        long = sending(house, *([f"{name} {number}" for number in range(20)] for name in "abcdef"))
        assert gate.reached.wait(SECONDS)
        house.wait_for(6)
        short = sending(house, "short")
        house.wait_for(7)
        gate.open()
        assert len(vectors(short()[0])) == 1
        assert all(len(vectors(reply)) == 20 for reply in long())
        sizes = [len(texts) for (texts,) in gate.calls]
        turn = next(number for number, (texts,) in enumerate(gate.calls) if "short" in texts)
        assert max(sizes) < 6, "not all requests fit one batch"
        assert sum(sizes[1:turn]) <= 6, "each has had one turn at most before it"


def test_one_more_request_than_fits_is_turned_away():
    with application(limits=Limits(requests=2, retry_after=7)) as house:
        gate = Gate(house.worker, "embed")
        wait = sending(house, "a", "b")
        house.wait_for(2)
        reply = embed(house)
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "7"
        assert error_of(reply.json())["type"] == "server_error"
        gate.open()
        assert [each.status_code for each in wait()] == [200, 200]
        assert embed(house).status_code == 200


def test_work_that_takes_too_long_is_given_up():
    with application(limits=Limits(request_seconds=0.2)) as house:
        gate = Gate(house.worker, "embed")
        reply = embed(house)
        assert reply.status_code == 504
        assert error_of(reply.json())["code"] == "timeout"
        assert house.requests() == 0
        gate.open()


def test_a_bug_is_one_answer_and_a_line_without_texts():
    def broken(_texts):
        raise RuntimeError("secret words")

    with application() as house:
        kept, house.worker.embed = house.worker.embed, broken
        reply = embed(house, input="secret words")
        assert reply.status_code == 500
        assert error_of(reply.json())["type"] == "server_error"
        house.worker.embed = kept
        assert embed(house).status_code == 200
    assert any("RuntimeError at test_embeddings.py:" in line for line in house.log)
    assert "secret" not in reply.text + "".join(house.log)


def test_a_model_whose_embeddings_are_not_finite_is_not_served():
    encoder = adapted_encoder()
    weight = encoder.loaded.model.model.norm.weight * float("nan")
    mx.eval(weight)
    encoder.loaded.model.update({"model": {"norm": {"weight": weight}}})
    with pytest.raises(ModelError, match="NaN or infinity"), application(encoder):
        pass
