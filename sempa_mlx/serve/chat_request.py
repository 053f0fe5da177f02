"""The body of `POST /v1/chat/completions`, checked."""

from dataclasses import dataclass

from sempa_mlx.data.records import Message
from sempa_mlx.serve.fields import Fields, is_list_of, is_text, shown_name

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_SEED = 2**63 - 1
MAX_TOKENS = 2**31 - 1
CHANGE_NOTHING = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    "parallel_tool_calls",
)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What to answer, and how.

    `max_tokens` and `seed` are None if the client left them open.
    """

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None
    temperature: float
    top_p: float
    stops: tuple[str, ...]
    seed: int | None
    stream: bool
    include_usage: bool


def parse_chat_request(document: object, *, max_stops: int) -> ChatRequest:
    """Check a body; what it asks for beyond text in, one text out, is refused and not passed over.

    Raises:
        RequestError: 400 with every fault.
    """
    fields = Fields(document)
    stream = fields.flag("stream")
    request = ChatRequest(
        model=fields.text("model"),
        messages=_messages(fields),
        max_tokens=_max_tokens(fields),
        temperature=fields.number("temperature", 1.0, 0.0, 2.0),
        top_p=fields.number("top_p", 1.0, 0.0, 1.0),
        stops=_stops(fields, max_stops),
        seed=fields.whole("seed", -MAX_SEED, MAX_SEED),
        stream=stream,
        include_usage=_include_usage(fields, stream=stream),
    )
    _refuse_the_rest(fields)
    fields.finish()
    return request


def _refuse_the_rest(fields: Fields) -> None:
    """Refuse what is part of OpenAI's shape and not done here."""
    fields.only("n", 1)
    for name in ("frequency_penalty", "presence_penalty", "top_logprobs"):
        fields.only(name, 0)
    fields.only("logprobs", False)
    fields.only("logit_bias", {})
    fields.only("response_format", {"type": "text"})
    fields.only("modalities", ["text"])
    for name in ("tools", "functions"):
        fields.only(name, [])
    for name in ("tool_choice", "function_call"):
        fields.only(name, "none", "auto")
    fields.ignore(*CHANGE_NOTHING)


def _max_tokens(fields: Fields) -> int | None:
    """Take the bound under its old and its new name."""
    old, new = (
        fields.whole(name, 1, MAX_TOKENS) for name in ("max_tokens", "max_completion_tokens")
    )
    if old is not None and new is not None and old != new:
        fields.fault("max_tokens", "and `max_completion_tokens` differ; give one of them")
    return old if new is None else new


def _stops(fields: Fields, max_stops: int) -> tuple[str, ...]:
    value = fields.value("stop")
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if is_list_of(is_text, stops) and all(stops) and len(stops) <= max_stops:
        return tuple(stops)
    fields.fault("stop", f"must be a text or up to {max_stops} texts that are not empty")
    return ()


def _include_usage(fields: Fields, *, stream: bool) -> bool:
    value = fields.value("stream_options")
    if value is None:
        return False
    if not stream:
        fields.fault("stream_options", "goes with `stream` only")
    if not isinstance(value, dict) or not value.keys() <= {"include_usage", "include_obfuscation"}:
        fields.fault("stream_options", "must be an object with `include_usage`")
        return False
    wanted = value.get("include_usage")
    if wanted is not None and not isinstance(wanted, bool):
        fields.fault("stream_options", "must have true or false as `include_usage`")
    return wanted is True


def _messages(fields: Fields) -> tuple[Message, ...]:
    value = fields.value("messages")
    if not isinstance(value, list) or not value:
        fields.fault("messages", "must be a list of messages, and not be empty")
        return ()
    found = []
    for index, each in enumerate(value):
        message = _message(fields, index, each)
        if message is not None:
            found.append(message)
        elif fields.has_many_faults:
            break
    return tuple(found)


def _message(fields: Fields, index: int, value: object) -> Message | None:
    place = f"messages[{index}]"
    role = value.get("role") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(role, str) or role not in ROLES:
        fields.fault(place, f"must be an object with a `role` of {', '.join(ROLES)}")
        return None
    if others := _further(value, "role", "content", "name"):
        named = ", ".join(shown_name(name) for name in sorted(others)[:3])
        fields.fault(place, f"may have `role`, `content` and `name` only, not {named}")
        return None
    content = _content(value.get("content"))
    if content is None:
        what = "must have a text as `content`, or parts with `type` text and `text` only"
        fields.fault(place, what)
        return None
    return Message(ROLES[role], content)


def _further(document: dict[str, object], *known: str) -> set[str]:
    """Return the names of other fields than the known ones, unless nothing is in them."""

    def is_nothing(value: object) -> bool:
        return value is False or value in (None, [], {}, "")

    return {name for name, value in document.items() if not is_nothing(value)} - {*known}


def _content(value: object) -> str | None:
    """Return a content as one text; None if it is something else."""
    if is_text(value):
        return value
    if not isinstance(value, list) or not value:
        return None
    texts = [_text_of_part(part) for part in value]
    return None if None in texts else "".join(text for text in texts if text is not None)


def _text_of_part(part: object) -> str | None:
    if not isinstance(part, dict) or part.get("type") != "text" or _further(part, "type", "text"):
        return None
    text = part.get("text")
    return text if is_text(text) else None
