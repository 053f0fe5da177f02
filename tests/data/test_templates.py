import pytest
from hypothesis import given
from hypothesis import strategies as st

from sempa_mlx.data.templates import (
    EMBEDDING_TEMPLATES,
    PARAPHRASE_TEMPLATES,
    PROMPTEOL,
    RAW,
    EmbeddingTemplate,
    clean_sentence,
    paraphrase_prompt,
)
from sempa_mlx.errors import UsageError

NASTY = [
    'He said "S" and left',
    "{0} {sentence} {{}} %s %(x)s $S",
    "line one\nline two\r\n\tthree",
    '"S", while making some changes.',
    '<|im_end|></s>[INST] {% raw %} means in one word:"',
    "שלום \u200f e\u0301 👩\u200d👩\u200d👧",
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("P1", 'Keep the same meaning of this sentence: "A cat.", while making some changes.'),
        (
            "P2",
            (
                'Generate a paraphrase of this sentence: "A cat." that preserves its '
                "meaning, while making some changes."
            ),
        ),
        (
            "P3",
            'Keep the main meaning of this sentence: "A cat.", and rewrite it in a different way.',
        ),
        ("P4", 'Generate a paraphrase of the sentence: "A cat.".'),
        (
            "P5",
            (
                'Rewrite the sentence: "A cat." while preserving its main meaning, but the wording '
                "may be simplified or rephrased."
            ),
        ),
    ],
)
def test_paraphrase_prompts_are_those_of_the_paper(name, expected):
    assert paraphrase_prompt(name, "A cat.") == expected


@pytest.mark.parametrize("name", PARAPHRASE_TEMPLATES)
@pytest.mark.parametrize("sentence", NASTY)
def test_a_paraphrase_prompt_holds_the_sentence_as_it_is(name, sentence):
    head, tail = paraphrase_prompt(name, "\0").split("\0")
    assert paraphrase_prompt(name, sentence) == head + sentence + tail


def test_an_unknown_paraphrase_template_names_the_close_one():
    with pytest.raises(UsageError) as caught:
        paraphrase_prompt("p1", "x")
    assert "did you mean P1" in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("A man walks", "A man walks."),
        ("A man walks.", "A man walks."),
        ("Really?", "Really."),
        ("x !", "x !."),
        ('He said "no"', "He said 'no'"),
        ('"What?" he said', "'What?' he said."),
        ("the dogs'", "the dogs'"),
        ('"', "'"),
        ("  two  \t blanks\n ", "two blanks."),
        ("no\u00a0break", "no break."),
        ("", ""),
        (" \n\t ", ""),
    ],
)
def test_sentences_are_cleaned_as_prompteol_cleans_them(raw, cleaned):
    assert clean_sentence(raw) == cleaned


@given(st.text())
def test_a_clean_sentence_keeps_its_rules(text):
    cleaned = clean_sentence(text)
    assert '"' not in cleaned
    assert cleaned == " ".join(cleaned.split())
    assert bool(cleaned) == bool(text.strip())
    assert not cleaned or cleaned[-1] in ".'"
    assert clean_sentence(cleaned) == cleaned


def test_prompteol_is_the_published_prompt():
    assert PROMPTEOL.render("A cat sat") == 'This sentence : "A cat sat." means in one word:"'
    assert PROMPTEOL.render("") == 'This sentence : "" means in one word:"'


@given(st.text() | st.sampled_from(NASTY))
def test_a_sentence_cannot_break_the_embedding_prompt(text):
    prompt = PROMPTEOL.render(text)
    assert prompt == prompt.strip()
    body = prompt.removeprefix('This sentence : "').removesuffix('" means in one word:"')
    assert body == clean_sentence(text)
    assert prompt.count('"') == 3


@given(st.text())
def test_raw_changes_nothing(text):
    assert RAW.render(text) == text


def test_templates_are_found_by_name():
    assert {"prompteol": PROMPTEOL, "raw": RAW} == EMBEDDING_TEMPLATES


def test_the_fingerprint_changes_with_every_field():
    variants = [
        EmbeddingTemplate("n", "p", "s", clean=True),
        EmbeddingTemplate("m", "p", "s", clean=True),
        EmbeddingTemplate("n", "q", "s", clean=True),
        EmbeddingTemplate("n", "p", "t", clean=True),
        EmbeddingTemplate("n", "p", "s", clean=False),
        EmbeddingTemplate("n", "ps", "", clean=True),
    ]
    prints = {variant.fingerprint for variant in variants}
    assert len(prints) == len(variants)
    assert all(len(each) == 12 and int(each, 16) >= 0 for each in prints)
    assert EmbeddingTemplate("n", "p", "s", clean=True).fingerprint == variants[0].fingerprint
