"""What a model answers when it is asked for one sentence, as that sentence."""

import unicodedata

QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“"}


def as_sentence(answer: str) -> str:
    """Return an answer on one line, without quotes around the whole of it.

    Control characters count as blanks, outer blanks go, runs of blanks become one. Quotes go
    together, as often as both stand at the ends and neither inside; nothing else is touched.
    """
    plain = "".join(" " if unicodedata.category(char) == "Cc" else char for char in answer)
    text = " ".join(plain.split())
    while (inner := _without_quotes(text)) is not None:
        text = inner.strip()
    return text


def _without_quotes(text: str) -> str | None:
    """Return what stands between the quotes around a text; None if there are none."""
    closing = QUOTES.get(text[:1])
    if closing is None or len(text) < 2 or text[-1] != closing:
        return None
    inner = text[1:-1]
    return None if text[0] in inner or closing in inner else inner
