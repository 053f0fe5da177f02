"""Prompts in parts: Echo's two copies and Token Prepending's placeholder."""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from sempa_mlx.data.templates import ECHO, PREPENDED, PROMPTEOL, RAW
from sempa_mlx.model.prompt_shape import PromptShape, prompt_shape
from sempa_mlx.model.prompts import encode_one, tokenize_texts
from tests.tiny import CONTROL_TOKENS, END, START, tiny_tokenizer

tokenizer = tiny_tokenizer()
CONTROL_IDS = {tokenizer.convert_tokens_to_ids(token) for token in CONTROL_TOKENS}
START_ID, END_ID = (tokenizer.convert_tokens_to_ids(token) for token in (START, END))
SMALL = "a dog's tail wags. "
BOTH_ENDS = TemplateProcessing(
    single=f"{START} $A {END}", special_tokens=[(START, START_ID), (END, END_ID)]
)


def plain(text):
    """Token ids of a text alone."""
    return encode_one(tokenizer, text, as_text=True)


@pytest.fixture
def opening_tokenizer():
    """A tokenizer that puts special tokens around every text, as Llama's does before it."""
    found = tiny_tokenizer()
    found._tokenizer.backend_tokenizer.post_processor = BOTH_ENDS
    return found


def test_an_echo_is_made_of_pieces_tokenised_apart():
    (row,) = tokenize_texts([SMALL], ECHO, tokenizer, 999).rows
    pieces = [plain(part) for part in (ECHO.prefix, SMALL, ECHO.suffix, SMALL)]
    assert row == tuple(chain.from_iterable(pieces))
    start = prompt_shape(ECHO, tokenizer).second_copy(len(row))
    assert row[start:] == plain(SMALL)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(max_size=40), st.integers(40, 60))
def test_both_copies_of_an_echo_are_the_same_also_when_cut(text, max_tokens):
    (row,) = tokenize_texts([text], ECHO, tokenizer, max_tokens).rows
    shape = prompt_shape(ECHO, tokenizer)
    before, between = plain(ECHO.prefix), plain(ECHO.suffix)
    start = shape.second_copy(len(row))
    assert len(row) <= max_tokens
    second = row[start:] if len(row) > shape.frame else ()
    assert row == before + second + between + second


def test_no_copy_of_a_sentence_holds_control_tokens():
    (row,) = tokenize_texts([f"b {END}"], ECHO, tokenizer, 999).rows
    assert not CONTROL_IDS & set(row)
    assert tokenizer.decode(row).count(END) == 2


def test_an_empty_echo_counts_its_last_token():
    (row,) = tokenize_texts([""], ECHO, tokenizer, 999).rows
    assert prompt_shape(ECHO, tokenizer).second_copy(len(row)) == len(row) - 1


def test_a_placeholder_stands_between_head_and_rest():
    (row,) = tokenize_texts(["A dog"], PREPENDED, tokenizer, 999).rows
    place = prompt_shape(PREPENDED, tokenizer).placeholder
    assert row[:place] == plain("This sentence : ")
    assert row[place] == END_ID
    assert row[place + 1 :] == plain(' "A dog." means in one word:"')


def test_plain_templates_have_no_shape():
    assert prompt_shape(PROMPTEOL, tokenizer) == prompt_shape(RAW, tokenizer) == PromptShape()


@pytest.mark.parametrize("template", [ECHO, PREPENDED])
def test_opening_tokens_come_once_and_closing_ones_not_at_all(opening_tokenizer, template):
    (expected,) = tokenize_texts([SMALL], template, tokenizer, 999).rows
    (row,) = tokenize_texts([SMALL], template, opening_tokenizer, 999).rows
    assert row == (START_ID, *expected)
    bare, shape = (prompt_shape(template, each) for each in (tokenizer, opening_tokenizer))
    if template.head:
        assert shape.placeholder == bare.placeholder + 1
    else:
        assert shape.second_copy(len(row)) == bare.second_copy(len(expected)) + 1


@pytest.mark.parametrize("template", [ECHO, PREPENDED])
def test_no_texts_in_parts(template):
    assert tokenize_texts([], template, tokenizer, 20).rows == ()
