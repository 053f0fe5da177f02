import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.data.near_duplicates import NearIndex, normal_form, shingles

# Two letters and few lengths: almost every pair shares shingles, many are near.
FEW_LETTERS = st.text("ab", min_size=1, max_size=24)


def windows(form):
    return {form[start : start + 5] for start in range(len(form) - 4)} or {form}


def jaccard(one, other):
    one, other = windows(one), windows(other)
    return len(one & other) / len(one | other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Don't stop!", "do n't stop ."),
        ('He said "no".', "he said `` no '' ."),
        ("A  cat\tsleeps", "a cat sleeps"),
        ("Caf\u00e9 \u00bd", "cafe\u0301 1\u20442"),
        ("STRASSE", "stra\u00dfe"),
        ("don\u00b4t", "don\u2019t"),
        ("soft\u00adware", "software"),
        ("\uff21\uff22\uff23", "abc"),
    ],
)
def test_case_blanks_punctuation_and_compatibility_forms_do_not_count(one, other):
    assert normal_form(one) == normal_form(other) != ""


@pytest.mark.parametrize(
    ("one", "other"),
    [("...", "!!!"), ("2+2", "22"), ("resume", "r\u00e9sum\u00e9"), ("\u0915\u093f", "\u0915")],
)
def test_what_carries_meaning_counts(one, other):
    assert normal_form(one) != normal_form(other)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_a_normal_form_is_its_own(text):
    form = normal_form(text)
    assert normal_form(form) == form
    assert not any(each.isspace() for each in form)


def test_short_forms_are_one_shingle():
    assert shingles("abc") == {"abc"}
    assert shingles("abcdef") == {"abcde", "bcdef"}


@settings(deadline=None)
@given(st.lists(FEW_LETTERS, unique=True, max_size=25), FEW_LETTERS)
def test_every_near_form_is_found_and_no_other(forms, form):
    expected = {
        position: jaccard(each, form)
        for position, each in enumerate(forms)
        if 5 * len(windows(each) & windows(form)) >= 4 * len(windows(each) | windows(form))
    }
    assert NearIndex(forms).find(form) == pytest.approx(expected)


def test_four_fifths_is_near_enough():
    one, other = "abcdefghi", "abcdefgh"  # five shingles, of which four are shared
    assert NearIndex([one]).find(other) == {0: 0.8}
    assert NearIndex(["abcdefghij"]).find("abcdefgh") == {}  # four of six
