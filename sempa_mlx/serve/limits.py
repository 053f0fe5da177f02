"""How much a client may ask for, and how long it may take. Seconds, bytes, tokens."""

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of the server; every one is answered with an error in OpenAI's shape.

    `requests` counts those that are read, wait or run; one more is turned away. `head_seconds`
    bounds the head of a request and an idle connection, `body_seconds` its body,
    `request_seconds` the work, `write_seconds` how long a client may leave its answer unread, and
    `stop_seconds` how long requests may finish after a signal. `characters_a_token` turns texts
    away that cannot fit before they are tokenised.
    """

    body_bytes: int = 8 * MIB
    inputs: int = 256
    requests: int = 64
    stops: int = 4
    characters_a_token: int = 32
    context_tokens: int = 4096
    answer_tokens: int = 512
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    request_seconds: float = 600.0
    write_seconds: float = 30.0
    stop_seconds: float = 10.0
    retry_after: int = 1


@dataclass(frozen=True, slots=True)
class Batching:
    """What runs together on the inference thread.

    `tokens` bounds an embedding batch, template included; `requests` how many requests share one
    (None: as many as fit; 1: no dynamic batching); `chats` are generated together.
    """

    tokens: int = 4096
    requests: int | None = None
    chats: int = 8
