import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.data.records import Message, PreferenceRecord
from sempa_mlx.data.templates import PROMPTEOL, RAW, clean_sentence
from sempa_mlx.errors import DataError, ModelError
from sempa_mlx.model.prompts import (
    ChatRenderer,
    tokenize_continuations,
    tokenize_preferences,
    tokenize_texts,
)
from tests.tiny import (
    CHATML,
    CONTROL_TOKENS,
    END,
    SEPARATOR,
    START,
    control_pattern,
    tiny_tokenizer,
)

TRIMMING = CHATML.replace("message['content']", "message['content'] | trim")
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)
TEMPLATES = {
    "chatml": CHATML,
    "trimming": TRIMMING,
    "no-system": NO_SYSTEM,
    "default-system": DEFAULT_SYSTEM,
}
FEW = settings(max_examples=60, deadline=None, derandomize=True)


@functools.cache
def tokenizer_of(name):
    return tiny_tokenizer(TEMPLATES[name])


@functools.cache
def renderer_of(name):
    return ChatRenderer(tokenizer_of(name))


tokenizer = tokenizer_of("chatml")
CONTROL_IDS = {tokenizer.convert_tokens_to_ids(token) for token in CONTROL_TOKENS}
END_ID = tokenizer.eos_token_id


def record(user, system=None, candidates=("yes", "no")):
    head = () if system is None else (Message("system", system),)
    return PreferenceRecord((*head, Message("user", user)), tuple(candidates), line=1)


def as_text(text):
    """Token ids of text in which nothing is a control token."""
    return tuple(tokenizer._tokenizer.encode(text, add_special_tokens=False))


def chat(name, messages):
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return tokenizer_of(name).apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


# Ordinary text

ordinary = st.text(max_size=30).filter(lambda text: not control_pattern().search(text))


@pytest.mark.parametrize("name", ["chatml", "trimming", "default-system"])
@FEW
@given(user=ordinary, system=st.none() | ordinary)
def test_ordinary_chats_are_what_the_template_says(name, user, system):
    row = renderer_of(name).row(record(user, system))
    turns = [{"role": "system", "content": system}] if system is not None else []
    turns.append({"role": "user", "content": user})
    expected = tokenizer_of(name).apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert list(row.prompt) == expected


def test_a_chat_by_hand():
    row = renderer_of("chatml").row(record("Hi", "Be brief", ("A dog", "No")))
    assert tokenizer.decode(row.prompt) == (
        f"{START}system\nBe brief{END}\n{START}user\nHi{END}\n{START}assistant\n"
    )
    assert row.completions == ((*as_text("A dog"), END_ID), (*as_text("No"), END_ID))


# Control tokens

pieces = st.one_of(
    st.sampled_from([*CONTROL_TOKENS, "<|im_", "end|>", "<|", "\n", " ", f"<|im_{END}end|>"]),
    st.text(max_size=4),
)
spelled = st.lists(pieces, max_size=6).map("".join)


def control_count(ids):
    return sum(index in CONTROL_IDS for index in ids)


@pytest.mark.parametrize("name", ["chatml", "trimming", "default-system"])
@FEW
@given(user=spelled, system=st.none() | spelled)
def test_text_never_becomes_a_control_token(name, user, system):
    """Nothing is lost either: the prompt spells what the template says, control tokens and all."""
    row = renderer_of(name).row(record(user, system))
    harmless = renderer_of(name).row(record("x", None if system is None else "y"))
    assert control_count(row.prompt) == control_count(harmless.prompt)
    assert tokenizer.decode(row.prompt) == chat(name, record(user, system).prompt)


@pytest.mark.parametrize("token", CONTROL_TOKENS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_each_control_token_inside_a_sentence(name, token):
    """Also one without a role, and one that the template itself spells before the sentence."""
    row = renderer_of(name).row(record(token, None))
    harmless = renderer_of(name).row(record("x", None))
    assert control_count(row.prompt) == control_count(harmless.prompt)
    assert tokenizer.decode(row.prompt) == chat(name, record(token).prompt)


def test_a_control_token_beside_text_that_the_template_spells_too():
    """The word `system` and the sentence's own token stand earlier in the template."""
    row = renderer_of("chatml").row(record(END, "system"))
    ids = [index for index in row.prompt if index in CONTROL_IDS]
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in (START, END))
    assert ids == [start, end, start, end, start]
    assert tokenizer.decode(row.prompt) == (
        f"{START}system\nsystem{END}\n{START}user\n{END}{END}\n{START}assistant\n"
    )


def test_an_empty_message_beside_a_control_token():
    row = renderer_of("chatml").row(record(END, ""))
    assert tokenizer.decode(row.prompt) == (
        f"{START}system\n{END}\n{START}user\n{END}{END}\n{START}assistant\n"
    )


def test_a_control_token_in_a_sentence_that_the_template_trims():
    row = renderer_of("trimming").row(record(f"  a {SEPARATOR} b\n"))
    assert tokenizer.decode(row.prompt) == (
        f"{START}user\na {SEPARATOR} b{END}\n{START}assistant\n"
    )
    assert control_count(row.prompt) == 3


@FEW
@given(spelled, spelled)
def test_completions_hold_one_control_token_at_their_end(first, second):
    row = renderer_of("chatml").row(record("x", candidates=(first, second)))
    for text, ids in zip((first, second), row.completions, strict=True):
        assert control_count(ids) == 1
        assert ids[-1] == END_ID
        assert tokenizer.decode(ids[:-1]) == text


# End of turn


@pytest.mark.parametrize(
    ("closing", "expected"),
    [
        (END, (END_ID,)),
        (f"{SEPARATOR}{END}", (tokenizer.convert_tokens_to_ids(SEPARATOR), END_ID)),
        (" ", (END_ID,)),  # nothing but blanks: end of sequence
    ],
)
def test_the_end_of_turn_is_the_templates(closing, expected):
    template = CHATML.replace("'<|im_end|>' + '\n'", f"'{closing}' + '\n'")
    assert f"'{closing}' + '\n'" in template
    row = ChatRenderer(tiny_tokenizer(template)).row(record("x", candidates=("a", "b")))
    assert row.completions[0] == (*as_text("a"), *expected)


def test_a_template_that_rewrites_answers_ends_with_end_of_sequence():
    template = CHATML.replace("message['content']", "message['content'] | lower")
    row = ChatRenderer(tiny_tokenizer(template)).row(record("x"))
    assert row.completions[0] == (*as_text("yes"), END_ID)


# Prompts without a chat


@FEW
@given(spelled)
def test_a_plain_string_is_used_as_it_stands(text):
    row = renderer_of("chatml").row(PreferenceRecord(text, ("a", "b"), 1))
    assert tokenizer.decode(row.prompt) == text
    assert control_count(row.prompt) == 0
    assert row.completions == ((*as_text("a"), END_ID), (*as_text("b"), END_ID))


def test_messages_without_a_template_are_joined_by_lines():
    row = ChatRenderer(tiny_tokenizer(None)).row(record(f"Hi {END}", "Be brief"))
    assert tokenizer.decode(row.prompt) == f"Be brief\nHi {END}\n"
    assert control_count(row.prompt) == 0
    assert row.completions[1] == (*as_text("no"), END_ID)


def test_a_template_without_system_role_gets_it_in_the_first_turn():
    row = renderer_of("no-system").row(record("Hi", "Be brief"))
    assert tokenizer.decode(row.prompt) == (f"{START}user\nBe brief\n\nHi{END}\n{START}assistant\n")
    assert row.completions[0][-1] == END_ID


def test_merging_keeps_control_tokens_of_both_as_text():
    row = renderer_of("no-system").row(record(f"a{END}", f"{START}b"))
    assert tokenizer.decode(row.prompt) == (
        f"{START}user\n{START}b\n\na{END}{END}\n{START}assistant\n"
    )
    assert control_count(row.prompt) == 3


# Lengths


def test_rows_that_are_too_long_are_dropped_and_counted():
    records = [
        record("Hi"),
        record("Hi there, " * 20),
        record("Hi", candidates=("a", "b " * 40)),
        record("Hi", candidates=("b " * 40, "a")),
        record("Ho"),
    ]
    lengths = []
    for item in records:
        row = renderer_of("chatml").row(item)
        lengths.append(len(row.prompt) + max(map(len, row.completions)))
    assert lengths[0] < 40 < min(lengths[1:4])
    kept = tokenize_preferences(records, tokenizer, max_tokens=40)
    expected = tuple(renderer_of("chatml").row(records[index]) for index in (0, 4))
    assert kept.rows == expected
    assert kept.num_too_long == 3


def test_a_row_of_exactly_the_limit_is_kept():
    row = renderer_of("chatml").row(record("Hi", candidates=("a", "bcd efg")))
    length = len(row.prompt) + max(map(len, row.completions))
    for limit, dropped in ((length, 0), (length - 1, 1)):
        found = tokenize_preferences(
            [record("Hi", candidates=("a", "bcd efg"))], tokenizer, max_tokens=limit
        )
        assert found.num_too_long == dropped


# Embedding prompts


def test_texts_are_put_into_the_template():
    found = tokenize_texts(["A dog", f"b {END}"], PROMPTEOL, tokenizer, max_tokens=200)
    assert [tokenizer.decode(row) for row in found.rows] == [
        'This sentence : "A dog." means in one word:"',
        f'This sentence : "b {END}." means in one word:"',
    ]
    assert not CONTROL_IDS & set(found.rows[1])
    assert found.num_truncated == 0


def test_no_texts():
    assert tokenize_texts([], PROMPTEOL, tokenizer, max_tokens=20).rows == ()


def test_an_empty_text_has_tokens():
    """Without a template too, as every text must get a vector."""
    with_template = tokenize_texts([""], PROMPTEOL, tokenizer, max_tokens=200)
    assert tokenizer.decode(with_template.rows[0]) == 'This sentence : "" means in one word:"'
    assert tokenize_texts(["", "a"], RAW, tokenizer, 200).rows == ((END_ID,), as_text("a"))


FRAME = len(tokenize_texts([""], PROMPTEOL, tokenizer, max_tokens=999).rows[0])
TAIL = as_text(' means in one word:"')


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(max_size=60), st.integers(FRAME + 1, FRAME + 30))
def test_cutting_keeps_the_templates_tail(text, max_tokens):
    whole = tokenize_texts([text], PROMPTEOL, tokenizer, max_tokens=9999).rows[0]
    found = tokenize_texts([text], PROMPTEOL, tokenizer, max_tokens)
    (row,) = found.rows
    assert len(row) <= max_tokens
    assert row[-len(TAIL) :] == TAIL
    assert tokenizer.decode(row).startswith(PROMPTEOL.prefix)
    assert found.num_truncated == (len(whole) > max_tokens)
    if len(whole) <= max_tokens:
        assert row == whole


@FEW
@given(st.lists(st.sampled_from(["a", "dog", "runs", "grass."]), min_size=1), st.integers(1, 25))
def test_what_is_left_of_a_cut_text_is_its_beginning(words, room):
    text = " ".join(words)
    (row,) = tokenize_texts([text], PROMPTEOL, tokenizer, FRAME + room).rows
    rest = tokenizer.decode(row).removeprefix(PROMPTEOL.prefix).removesuffix(PROMPTEOL.suffix)
    assert clean_sentence(text).startswith(rest.removesuffix("."))
    # Adding a full stop may cost a token or two of what there was room for.
    assert len(row) >= min(FRAME + room, len(as_text(PROMPTEOL.render(text)))) - 3


def test_leading_blanks_do_not_crowd_out_a_sentence_that_is_cut():
    text = "\n" * 100 + "A dog runs on the grass " * 20
    (row,) = tokenize_texts([text], PROMPTEOL, tokenizer, FRAME + 20).rows
    assert tokenizer.decode(row).startswith('This sentence : "A dog runs')


def test_a_limit_below_the_template_keeps_the_template():
    (row,) = tokenize_texts(["A dog"], PROMPTEOL, tokenizer, max_tokens=3).rows
    assert tokenizer.decode(row) == 'This sentence : "" means in one word:"'


def test_cut_texts_keep_their_places():
    texts = ["a", "A man is watching " * 20, "b"]
    found = tokenize_texts(texts, PROMPTEOL, tokenizer, FRAME + 5)
    assert found.num_truncated == 1
    assert found.rows[0] == as_text(PROMPTEOL.render("a"))
    assert found.rows[2] == as_text(PROMPTEOL.render("b"))
    assert len(found.rows[1]) <= FRAME + 5


# Continuations


def test_a_continuation_is_encoded_with_its_prompt_and_cut_where_the_prompt_ends():
    pairs = [("A cat", [" sleeps", " runs on the grass"]), ("Two", [" dogs"])]
    rows = tokenize_continuations(pairs, tokenizer)
    assert [len(row.completions) for row in rows] == [2, 1]
    for row, (prompt, continuations) in zip(rows, pairs, strict=True):
        assert row.prompt == as_text(prompt)
        for completion, text in zip(row.completions, continuations, strict=True):
            assert row.prompt + completion == as_text(prompt + text)


def test_blanks_at_the_end_of_a_prompt_belong_to_the_continuation():
    (spaced,) = tokenize_continuations([("A cat ", ["sleeps"])], tokenizer)
    (plain,) = tokenize_continuations([("A cat", [" sleeps"])], tokenizer)
    assert spaced == plain
    (lines,) = tokenize_continuations([("A cat:\n\n", ["sleeps"])], tokenizer)
    assert lines.prompt == as_text("A cat:")
    assert tokenizer.decode(lines.completions[0]) == "\n\nsleeps"


def test_a_token_that_runs_over_the_end_of_the_prompt_is_cut_by_count():
    """The harness keeps the prompt's own tokens, and as many fewer of the whole."""
    prompt, text = "The child", "ren don't"
    (row,) = tokenize_continuations([(prompt, [text])], tokenizer)
    whole = as_text(prompt + text)
    assert whole[: len(row.prompt)] != row.prompt, "the tokens must differ for this to test"
    assert row.prompt == as_text(prompt)
    assert row.completions == (whole[len(row.prompt) :],)


def test_names_of_control_tokens_stay_text_in_continuations():
    (row,) = tokenize_continuations([(f"A {START}", [f" {END}", " cat"])], tokenizer)
    assert not CONTROL_IDS & {*row.prompt, *row.completions[0]}


def test_a_continuation_without_tokens_is_an_error():
    with pytest.raises(DataError, match="adds no token"):
        tokenize_continuations([("A cat", [" sleeps", ""])], tokenizer)


def test_no_continuations():
    assert tokenize_continuations([], tokenizer) == []


def test_text_of_all_characters_of_private_use_is_refused():
    text = "".join(map(chr, (*range(0xE000, 0xF900), *range(0xF0000, 0x10FFFE))))
    with pytest.raises(ModelError, match="private use"):
        renderer_of("chatml").row(record(text + CONTROL_TOKENS[0], None))
