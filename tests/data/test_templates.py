import pytest
from hypothesis import given
from hypothesis import strategies as st

from sempa_mlx.data.templates import (
    ECHO,
    EMBEDDING_TEMPLATES,
    IRRELEVANT,
    KE,
    METAEOL,
    PARAPHRASE_TEMPLATES,
    PREPENDED,
    PRETCOT,
    PROMPTEOL,
    PROMPTEOL_ICL,
    RAW,
    EmbeddingTemplate,
    clean_sentence,
    paraphrase_prompt,
)
from sempa_mlx.errors import UsageError

ONE_WORD = [PROMPTEOL, PROMPTEOL_ICL, PRETCOT, KE, IRRELEVANT, PREPENDED, *METAEOL]
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
    assert EMBEDDING_TEMPLATES["prompteol"] is PROMPTEOL
    assert all(name == template.name for name, template in EMBEDDING_TEMPLATES.items())
    prints = {template.fingerprint for template in EMBEDDING_TEMPLATES.values()}
    assert len(prints) == len(EMBEDDING_TEMPLATES)


def test_fingerprints_of_published_templates_stay():
    """They stand in the `encoder.json` of adapters out in the world."""
    assert PROMPTEOL.fingerprint == "b759c5c1b236"
    assert RAW.fingerprint == "5f682555a006"


@pytest.mark.parametrize("template", ONE_WORD, ids=lambda template: template.name)
def test_prompts_for_one_word_end_open(template):
    prompt = template.render('He said "no"')
    assert prompt.endswith(' in one word:"')
    assert "this sentence : " in prompt.lower()
    assert "\"He said 'no'\" " in prompt
    assert template.clean


def test_the_published_prompts():
    assert KE.render("A dog") == (
        "The essence of a sentence is often captured by its main subjects and actions, while "
        "descriptive terms provide additional but less central details. With this in mind , "
        'this sentence : "A dog." means in one word:"'
    )
    assert PRETCOT.render("A dog").startswith("After thinking step by step , this sentence : ")
    assert PROMPTEOL_ICL.render("A dog") == (
        'This sentence : "A jockey riding a horse." means in one word:"Equestrian".'
        'This sentence : "A dog." means in one word:"'
    )


def test_metaeol_asks_eight_things():
    assert len({template.prefix for template in METAEOL}) == 8


def test_echo_says_the_sentence_twice():
    assert ECHO.parts("a 'b'") == (
        "Rewrite the sentence: ",
        "a 'b'",
        ", rewritten sentence: ",
        "a 'b'",
    )


def test_the_placeholder_stands_before_the_quote():
    """Where the authors write `This sentence : <PST> "S"`, with their tokenizer's blanks."""
    assert PREPENDED.parts("A dog") == ("This sentence : ", ' "A dog." means in one word:"')


def test_the_fingerprint_changes_with_every_field():
    variants = [
        EmbeddingTemplate("n", "p", "s", clean=True),
        EmbeddingTemplate("m", "p", "s", clean=True),
        EmbeddingTemplate("n", "q", "s", clean=True),
        EmbeddingTemplate("n", "p", "t", clean=True),
        EmbeddingTemplate("n", "p", "s", clean=False),
        EmbeddingTemplate("n", "ps", "", clean=True),
        EmbeddingTemplate("n", "p", "s", clean=True, head="h"),
        EmbeddingTemplate("n", "p", "s", clean=True, twice=True),
    ]
    prints = {variant.fingerprint for variant in variants}
    assert len(prints) == len(variants)
    assert all(len(each) == 12 and int(each, 16) >= 0 for each in prints)
    assert EmbeddingTemplate("n", "p", "s", clean=True).fingerprint == variants[0].fingerprint
