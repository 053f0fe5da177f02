"""Text piece by piece is the text at once, up to the first stop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sempa_mlx.serve.text_stream import TextStream
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SIZE = len(TOKENIZER.get_vocab())


def streamed(tokens, stops=()):
    """All pieces, and how many tokens were taken before a stop."""
    stream = TextStream(TOKENIZER, stops)
    pieces = []
    for token in tokens:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return pieces


def whole(tokens):
    return TOKENIZER.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@given(st.lists(st.integers(0, SIZE - 1), max_size=30))
def test_pieces_of_any_tokens_are_the_whole(tokens):
    assert "".join(streamed(tokens)) == whole(tokens)


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_nothing_from_a_stop_on_is_said(text, stops):
    found = "".join(streamed(TOKENIZER.encode(text, add_special_tokens=False), stops))
    text = whole(TOKENIZER.encode(text, add_special_tokens=False))
    places = [text.find(stop) for stop in stops if stop in text]
    expected = text[: min(places)] if places else text
    assert found == expected or (text.startswith(found) and len(found) < len(expected))
    if not places:
        assert found == text


@pytest.mark.parametrize("text", ["日本語 🎈", "né à Köln", "👩‍👩‍👧 ok"])
def test_no_piece_ends_inside_a_character(text):
    pieces = streamed(TOKENIZER.encode(text, add_special_tokens=False))
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 2
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_what_may_begin_a_stop_waits():
    stream = TextStream(TOKENIZER, ["###"])
    tokens = TOKENIZER.encode("a#", add_special_tokens=False)
    assert "".join(stream.add(token) for token in tokens) == "a"
    assert stream.finish() == "#"


def test_a_blank_is_kept_after_a_control_token_without_text():
    """As SentencePiece has it: the first token of a text loses its blank."""
    words = {1: "\u2581hello", 2: None, 3: "\u2581world"}

    class Tokenizer:
        def decode(self, tokens, **_options):
            return (
                "".join(words[token] or "" for token in tokens).replace("\u2581", " ").lstrip(" ")
            )

    for tokens in ([1, 2, 3], [2, 1, 3], [1, 2, 2, 3]):
        stream = TextStream(Tokenizer())
        pieces = [stream.add(token) for token in tokens]
        assert "".join([*pieces, stream.finish()]) == "hello world"
