"""From a model's answer to a sentence; and which sentences count as one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sempa_mlx.data.answers import as_sentence
from sempa_mlx.data.near_duplicates import normal_form

WORD = st.text("abcdefghäß'", min_size=1, max_size=6).filter(lambda word: word.strip("'"))
WORDS = st.lists(WORD, min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("  A cat.\n", "A cat."),
        ('"A cat."', "A cat."),
        (" \"' A cat.' \" ", "A cat."),
        ("“A cat.”", "A cat."),
        ("«A cat.»", "A cat."),
        ("`A cat.`", "A cat."),
        ("A cat\n\nsleeps\there.", "A cat sleeps here."),
        ("A\x1b[31m cat\x00.", "A [31m cat ."),
        ('"Hello," she said, "cat."', '"Hello," she said, "cat."'),
        ('"A cat', '"A cat'),
        ("'Tis the dogs'", "Tis the dogs"),
        ("Here is one: A cat.", "Here is one: A cat."),
        ('"', '"'),
        ('""', ""),
        (" \n ", ""),
    ],
)
def test_an_answer_becomes_a_sentence(answer, sentence):
    assert as_sentence(answer) == sentence


@pytest.mark.unmeasured
@given(st.text(max_size=40))
def test_a_sentence_is_one_line_and_stays_what_it_is(answer):
    found = as_sentence(answer)
    assert found == found.strip()
    assert len(found.splitlines()) <= 1
    assert as_sentence(found) == found


@given(
    WORDS, st.sampled_from(["", ".", "!", " ?", "...", "。"]), st.sampled_from([" ", "  ", "\n"])
)
def test_case_blanks_and_end_marks_make_no_new_sentence(words, end, blank):
    plain = " ".join(words)
    assert normal_form(f" {blank.join(words).title()}{end}") == normal_form(plain)


@given(WORDS, WORDS)
def test_other_letters_make_a_new_sentence(left, right):
    letters = ["".join(words).replace("'", "").replace("ß", "ss") for words in (left, right)]
    same = normal_form(" ".join(left)) == normal_form(" ".join(right))
    assert same is (letters[0] == letters[1])
