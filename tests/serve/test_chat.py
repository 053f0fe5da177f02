"""`/v1/chat/completions`: the base model's words, or the adapted one's, whole or in pieces."""

import json

import pytest

from sempa_mlx.data.records import Message
from sempa_mlx.serve.chat_request import parse_chat_request
from sempa_mlx.serve.faults import RequestError
from sempa_mlx.serve.limits import Batching, Limits
from tests.serve.house import (
    ADAPTED,
    BASE,
    CHAT,
    EMBED,
    EMBEDDINGS,
    JSON,
    SECONDS,
    Gate,
    adapted_encoder,
    application,
    asking,
    at_once,
    error_of,
    events,
    said,
)

QUESTION = "Two dogs run"
IMAGE = {"type": "text", "text": "x", "image_url": "y"}


@pytest.fixture(scope="module")
def house():
    with application() as house:
        yield house


def chat(house, content=QUESTION, **fields):
    reply = house.post(CHAT, asking(content, **fields))
    assert reply.status_code == 200, reply.text
    return reply


def text(reply):
    return reply.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(("model", "factor"), [(BASE, 0.0), (ADAPTED, 1.0)])
def test_greedy_words_are_the_models_own(house, model, factor):
    document = chat(house, model=model).json()
    assert (document["object"], document["model"]) == ("chat.completion", model)
    (choice,) = document["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == house.greedy(QUESTION, 12, factor)


def test_the_adapter_makes_a_difference(house):
    assert text(chat(house)) != text(chat(house, model=ADAPTED))


@pytest.mark.parametrize("model", [BASE, ADAPTED])
def test_a_stream_says_the_same(house, model):
    answer = chat(house, model=model)
    whole = answer.json()
    reply = chat(house, model=model, stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(reply.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert said(chunks) == text(answer)
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert {(each["id"], each["object"]) for each in (*chunks, last)} == {
        (last["id"], "chat.completion.chunk")
    }


def test_usage_counts_prompt_and_answer(house):
    tokenizer = house.encoder.loaded.tokenizer
    message = {"role": "user", "content": QUESTION}
    prompt = tokenizer.apply_chat_template([message], add_generation_prompt=True)
    document = chat(house, max_tokens=5).json()
    assert document["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 5,
        "total_tokens": len(prompt) + 5,
    }
    assert document["choices"][0]["finish_reason"] == "length"


def test_names_of_control_tokens_stay_text(house):
    question = "say <|im_end|> twice"
    plain = chat(house, question).json()["usage"]["prompt_tokens"]
    forged = house.encoder.loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True
    )
    assert plain > len(forged), "spelt out, it takes more tokens than the one it names"


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_before_it(house, stream):
    whole = text(chat(house, max_tokens=40))
    stop = whole[10:13]
    reply = chat(house, max_tokens=40, stop=["never said", stop], stream=stream)
    if stream:
        chunks = events(reply.text)
        found, finish = said(chunks), chunks[-1]["choices"][0]["finish_reason"]
    else:
        found, finish = text(reply), reply.json()["choices"][0]["finish_reason"]
    assert found == whole[: whole.index(stop)]
    assert finish == "stop"


def test_a_seed_gives_the_same_draw_and_others_do_not(house):
    first, again, other = (
        text(chat(house, temperature=1.5, top_p=0.95, seed=seed, max_tokens=30))
        for seed in (7, 7, 8)
    )
    assert first == again != other


def test_the_smallest_top_p_is_greedy(house):
    drawn = chat(house, temperature=2.0, top_p=1e-9, seed=3)
    assert text(drawn) == text(chat(house))


def test_markers_in_a_text_are_tokenised_as_the_text_that_they_are(house):
    messages = [{"role": "user", "content": "<|im_end|> and </s><|im_end|>" * 20}]
    worker = house.worker
    given = tuple(Message(each["role"], each["content"]) for each in messages)
    tokens = worker._renderer.prompt(given)
    tokenizer = house.encoder.loaded.tokenizer
    text = tokenizer.decode(list(tokens))
    assert messages[0]["content"] in text
    ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokens.count(ends) == 1, "the template's own"


def test_parts_and_roles_are_read(house):
    parts = [{"type": "text", "text": "Two dogs"}, {"type": "text", "text": " run"}]
    system = {"role": "developer", "content": "Be brief."}
    assert text(chat(house, messages=[{"role": "user", "content": parts}])) == text(chat(house))
    longer = chat(house, messages=[system, {"role": "user", "content": parts}]).json()
    assert longer["usage"]["prompt_tokens"] > chat(house).json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "foo": 0}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0]"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": False}, "stop"),
        ({"stop": {}}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"max_token": 5}, "max_token"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_answered_is_refused(house, fields, param):
    body = json.dumps(asking("a") | fields)
    reply = house.client.post(CHAT, content=body, headers=JSON)
    assert reply.status_code == 400
    assert error_of(reply.json())["param"] == param


def test_an_unknown_field_of_a_message_is_named(house):
    message = {"role": "user", "content": "x", "foo": 1, "refusal": None, "tool_calls": []}
    reply = house.post(CHAT, asking("a") | {"messages": [message]})
    assert "only, not foo" in error_of(reply.json())["message"]
    del message["foo"]
    message |= {"prefix": False, "content": [{"type": "text", "text": "x", "annotations": []}]}
    assert house.post(CHAT, asking("a") | {"messages": [message]}).status_code == 200


def test_what_asks_for_nothing_is_taken(house):
    nothing = {"frequency_penalty": 0, "logit_bias": {}, "tools": [], "n": 1, "user": "me"}
    extra = {"response_format": {"type": "text"}, "logprobs": False, "stop": None, "seed": None}
    assert text(chat(house, **nothing, **extra)) == text(chat(house))


@pytest.mark.parametrize("name", [EMBED, "gpt-4o", f"{BASE}:sempa:sempa"])
def test_no_other_model_answers(house, name):
    reply = house.post(CHAT, asking("a", model=name))
    assert reply.status_code == 404
    assert error_of(reply.json())["code"] == "model_not_found"


def test_a_conversation_beyond_the_context_is_refused_and_an_answer_ends_at_it():
    with application(limits=Limits(context_tokens=60)) as house:
        refused = house.post(CHAT, asking("word " * 60))
        assert refused.status_code == 400
        assert error_of(refused.json())["code"] == "context_length_exceeded"
        assert house.post(CHAT, asking("x" * 10_000)).status_code == 400
        empty = house.post(CHAT, asking("x") | {"messages": [{"role": "user", "content": ""}] * 61})
        assert "61 messages" in error_of(empty.json())["message"]
        usage = chat(house, max_tokens=500).json()["usage"]
        assert usage["total_tokens"] <= 60


def test_chats_run_together_and_keep_apart():
    """Each gets the words that it gets alone, whatever its neighbours and their adapters."""
    questions = [f"{count} dogs run on the grass"[: 8 + count] for count in range(9)]
    with application(batching=Batching(chats=4)) as house:
        bodies = [
            asking(question, model=model, max_tokens=10 + index)
            for index, question in enumerate(questions)
            for model in (BASE, ADAPTED)
        ]
        replies = at_once(lambda body: house.post(CHAT, body), bodies)()
        for body, reply in zip(bodies, replies, strict=True):
            factor = float(body["model"] == ADAPTED)
            content = body["messages"][0]["content"]
            assert text(reply) == house.greedy(content, body["max_tokens"], factor)


def test_embeddings_do_not_wait_for_the_end_of_a_chat():
    with application() as house:
        steps = Gate(house.worker, "step")
        long = at_once(lambda body: house.post(CHAT, body), [asking("a", max_tokens=60)])
        assert steps.reached.wait(SECONDS)
        embedding = at_once(
            lambda body: house.post(EMBEDDINGS, body), [{"model": EMBED, "input": "b"}]
        )
        house.wait_for(2)
        steps.open()
        (reply,) = embedding()
        before = len(steps.calls)
        assert reply.status_code == 200
        (answer,) = long()
        assert before < answer.json()["usage"]["completion_tokens"] <= len(steps.calls)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "lfm2", "qwen3"])
def test_models_that_no_batch_of_mlx_lm_fits_chat_one_after_the_other(kind):
    with application(adapted_encoder(kind)) as house:
        assert (house.worker.chat_rows > 1) is (kind != "gemma2")
        questions = ("Two dogs run on the grass", "A cat")
        replies = at_once(lambda question: chat(house, question, model=f"tiny-{kind}"), questions)()
        for question, reply in zip(questions, replies, strict=True):
            assert text(reply) == house.greedy(question, 12, 0.0)


def test_a_bug_in_the_turns_turns_requests_away_and_keeps_none_waiting():
    with application() as house:
        house.worker.step = lambda _new, _gone: [(-1, None)]
        reply = house.post(CHAT, asking("a"))
        assert reply.status_code == 503
        assert house.post(EMBEDDINGS, {"model": EMBED, "input": "a"}).status_code == 503
        assert house.client.get("/health").status_code == 503
    assert any(line.startswith("error: KeyError at engine.py") for line in house.log)


def test_a_step_that_fails_ends_the_chats_but_not_the_server():
    def broken(_new, _gone):
        raise RuntimeError("out of memory")

    with application() as house:
        kept, house.worker.step = house.worker.step, broken
        assert house.post(CHAT, asking("a")).status_code == 500
        reply = house.post(CHAT, asking("a", stream=True))
        assert reply.status_code == 200, "its head was sent before"
        assert '"type": "server_error"' in reply.text
        house.worker.step = kept
        assert text(chat(house)) == house.greedy(QUESTION, 12, 0.0)
        assert house.requests() == 0


def test_what_a_future_cannot_hold_is_a_fault_of_one_request():
    def ends(_job, **_options):
        raise StopIteration

    with application() as house:
        kept, house.worker.read_chat = house.worker.read_chat, ends
        assert house.post(CHAT, asking("a")).status_code == 500
        house.worker.read_chat = kept
        assert text(chat(house)) == house.greedy(QUESTION, 12, 0.0)


def test_characters_of_private_use_are_text_like_any_other(house):
    question = "".join(map(chr, range(0xE000, 0xF900))) + "<|im_end|>"
    reply = house.post(CHAT, asking(question))
    assert reply.status_code in (200, 400)
    assert text(chat(house)) == house.greedy(QUESTION, 12, 0.0)


def test_of_many_faults_the_first_are_told():
    document = {"model": BASE, "messages": [0] * 100_000, **{f"x{n}": 0 for n in range(100)}}
    with pytest.raises(RequestError) as caught:
        parse_chat_request(document, max_stops=4)
    assert "`messages[19]` must be" in str(caught.value)
    assert "`messages[20]`" not in str(caught.value)
    assert str(caught.value).endswith("; and more")
