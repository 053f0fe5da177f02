"""The official client of OpenAI, and what LangChain sends, against a real server."""

import asyncio
import base64
import re
from pathlib import Path

import numpy as np
import openai
import pytest

from tests.command import SENTENCES
from tests.serve.house import ADAPTED, BASE, CHAT, EMBED, EMBEDDINGS, server

pytestmark = pytest.mark.interop
TEXTS = list(SENTENCES)
PAGE = Path(__file__).parents[1] / "docs" / "serve.md"
KEY = "a-key-of-some-length"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two dogs run"}]


@pytest.fixture(autouse=True)
def allowed(loopback):
    """Every test here connects to its own server."""


@pytest.fixture(scope="module")
def house():
    with server(api_key=KEY) as house:
        yield house


@pytest.fixture
def client(house):
    url = f"http://127.0.0.1:{house.port}/v1"
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


def embedded(reply):
    return np.array([each.embedding for each in reply.data], dtype=np.float32)


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
def test_embeddings_are_those_of_the_encoder(house, client, options):
    """The client asks for base64 by itself unless told."""
    reply = client.embeddings.create(model=EMBED, input=TEXTS, **options)
    np.testing.assert_allclose(embedded(reply), house.encoder.encode(TEXTS), atol=1e-5)
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 0


def test_one_text_and_fewer_dimensions(house, client):
    found = embedded(client.embeddings.create(model=EMBED, input=TEXTS[0], dimensions=8))
    expected = house.encoder.encode(TEXTS[:1])[:, :8]
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == [BASE, ADAPTED, EMBED]
    assert client.models.retrieve(BASE).owned_by == "sempa-mlx"


@pytest.mark.parametrize(("model", "factor"), [(BASE, 0.0), (ADAPTED, 1.0)])
def test_chat_says_what_the_model_says(house, client, model, factor):
    asked = {"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**asked)
    said = whole.choices[0].message.content
    assert said == house.greedy(MESSAGES, 16, factor)
    options = {"include_usage": True}
    *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options=options)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert len(pieces) > 3
    assert "".join(pieces) == said
    assert last.usage == whole.usage
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_the_async_client_asks_many_at_once(house):
    url = f"http://127.0.0.1:{house.port}/v1"

    async def ask():
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            asked = [client.embeddings.create(model=EMBED, input=[text]) for text in TEXTS * 4]
            return await asyncio.gather(*asked)

    found = np.concatenate([embedded(reply) for reply in asyncio.run(ask())])
    np.testing.assert_allclose(found, house.encoder.encode(TEXTS * 4), atol=1e-5)


def test_errors_are_the_clients_own(house, client):
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.embeddings.create(model="text-embedding-3-small", input="a")
    with pytest.raises(openai.BadRequestError, match="must be a number"):
        client.chat.completions.create(model=BASE, messages=MESSAGES, temperature=9)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").models.list()


def test_leaving_a_stream_early_ends_it(house, client):
    stream = client.chat.completions.create(
        model=BASE, messages=MESSAGES, max_tokens=4000, stream=True, seed=1
    )
    next(iter(stream))
    stream.close()
    house.wait_for(0)


# What langchain-openai 1.7 sends through OpenAI's client, as a server recorded it.
LANGCHAIN_HEADERS = {
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
    "authorization": f"Bearer {KEY}",
    "user-agent": "OpenAI/Python 3.57.0",
    "x-stainless-arch": "x64",
    "x-stainless-async": "false",
    "x-stainless-lang": "python",
    "x-stainless-os": "Linux",
    "x-stainless-package-version": "3.57.0",
    "x-stainless-raw-response": "true",
    "x-stainless-retry-count": "0",
    "x-stainless-runtime": "CPython",
    "x-stainless-runtime-version": "3.11.7",
}


def asked_by_langchain(house, path, body):
    status, _, document = house.ask("POST", path, body, **LANGCHAIN_HEADERS)
    assert status == 200, document
    return document


@pytest.mark.parametrize("fields", [{}, {"dimensions": 8}])
@pytest.mark.parametrize("as_ids", [True, False])
def test_what_langchain_sends_to_embed(house, as_ids, fields):
    """`OpenAIEmbeddings` sends lists of token ids, asks for base64, and joins what comes back.

    With `check_embedding_ctx_length=False` it sends the texts themselves; a query is a list of one.
    """
    tokenizer = house.encoder.loaded.tokenizer
    texts = [text for text in TEXTS if text]
    given = [tokenizer.encode(t, add_special_tokens=False) for t in texts] if as_ids else texts
    expected = house.encoder.encode(texts)[:, : fields.get("dimensions")]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for some, vectors in ((given, expected), (given[:1], expected[:1])):
        body = {"model": EMBED, "input": some, **fields, "encoding_format": "base64"}
        rows = asked_by_langchain(house, EMBEDDINGS, body)["data"]
        assert [row["index"] for row in rows] == list(range(len(some)))
        found = [np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4") for row in rows]
        np.testing.assert_allclose(found, vectors, atol=1e-5)


def test_the_empty_text_that_langchain_asks_about(house):
    """It leaves empty texts out of its lists of ids, and asks once for the vector of none."""
    body = {"model": EMBED, "input": "", "encoding_format": "base64"}
    (row,) = asked_by_langchain(house, EMBEDDINGS, body)["data"]
    found = np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4")
    np.testing.assert_allclose(found, house.encoder.encode([""])[0], atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [{}, {"max_completion_tokens": 5, "seed": 1, "stop": ["x"], "temperature": 0.0}],
)
def test_what_langchain_sends_to_chat(house, fields):
    messages = [{"content": "Be brief.", "role": "system"}, {"content": "Hello", "role": "user"}]
    limit = {"max_completion_tokens": 4}
    body = {"model": BASE, "stream": False, "messages": messages, **limit, **fields}
    document = asked_by_langchain(house, CHAT, body)
    assert document["choices"][0]["message"]["role"] == "assistant"
    assert document["usage"]["completion_tokens"] > 0


def test_the_example_of_the_page_runs():
    """Against a server that calls its model as the page does."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    with server(name="smollm2-135m") as house:
        names = {}
        exec(example.replace("127.0.0.1:8080", f"127.0.0.1:{house.port}"), names)
        np.testing.assert_allclose(
            [names["vector"]], house.encoder.encode(["A man plays guitar."]), atol=1e-5
        )
        assert names["answer"].usage.completion_tokens > 0
        assert names["chunk"].choices[0].finish_reason in ("stop", "length")
