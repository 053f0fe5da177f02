"""Answers in OpenAI's shape."""

import base64
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.responses import JSONResponse

from sempa_mlx.encoder.postprocess import at_unit_length
from sempa_mlx.serve.faults import RequestError

DONE = "data: [DONE]\n\n"


def error_reply(error: RequestError) -> JSONResponse:
    """Return an error as an answer."""
    return JSONResponse(error.document(), error.status, headers=error.headers)


def shortened(vectors: np.ndarray, dimensions: int | None, *, normalize: bool) -> np.ndarray:
    """Return (n, dim) vectors cut to their first dimensions, and at unit length again."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dimensions]
    return at_unit_length(cut) if normalize else cut


def embeddings_document(
    vectors: np.ndarray, *, as_base64: bool, model: str, num_tokens: int
) -> dict[str, Any]:
    """Return the answer to an embedding request; base64 holds little-endian float32."""
    found: Sequence[Any] = vectors.tolist()
    if as_base64:
        found = [base64.b64encode(row.tobytes()).decode() for row in vectors.astype("<f4")]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": each}
            for index, each in enumerate(found)
        ],
        "model": model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


class ChatReply:
    """The answer to a chat, whole or in pieces; all of them carry one id and time."""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        """Begin an answer of `model` to a prompt of so many tokens."""
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())

    def whole(self, text: str, finish: str | None, num_tokens: int) -> dict[str, Any]:
        """Return the answer at once."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return self._head("chat.completion", [choice]) | {"usage": self._usage(num_tokens)}

    def opening(self) -> str:
        """Return the first event of a stream."""
        return self._event({"role": "assistant", "content": ""}, None)

    def piece(self, text: str, finish: str | None) -> str:
        """Return the event of a piece of text."""
        return self._event({"content": text} if text else {}, finish)

    def usage(self, num_tokens: int) -> str:
        """Return the event that counts tokens."""
        document = self._head("chat.completion.chunk", []) | {"usage": self._usage(num_tokens)}
        return event(document)

    def _event(self, delta: dict[str, str], finish: str | None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(self._head("chat.completion.chunk", [choice]))

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self._id, "object": kind, "created": self._created}
        return head | {"model": self._model, "choices": choices}

    def _usage(self, num_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": self._prompt_tokens + num_tokens,
        }


def event(document: dict[str, Any]) -> str:
    """Return a server-sent event that carries JSON, in ASCII: some clients split at U+2028."""
    return f"data: {json.dumps(document)}\n\n"
