"""Leaks found against a comparison of every test sentence with every training text."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.data.leaks import LEVELS, ROLES, find_leaks
from sempa_mlx.data.near_duplicates import normal_form
from sempa_mlx.data.records import PreferenceRecord, StsPair, StsTask

WORDS = ["a", "cat", "Cat", "sleeps", "sleeping", "on", "the", "warm", "warmer", "stone", ".", "!"]
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=7).map(" ".join)


def record(line, anchor, *candidates):
    return PreferenceRecord("", tuple(candidates), line, anchor)


def task(name, *pairs):
    return StsTask(name, "file", tuple(StsPair(1.0, *pair) for pair in pairs))


def windows(form):
    return {form[start : start + 5] for start in range(len(form) - 4)} or {form}


def level_of(sentence, text):
    one, other = sentence.strip(), text.strip()
    if one == other:
        return 0
    one, other = normal_form(one), normal_form(other)
    if one == other:
        return 1
    one, other = windows(one), windows(other)
    return 2 if 5 * len(one & other) >= 4 * len(one | other) else 3


def texts_of(each):
    names = ("chosen", "rejected") if len(each.candidates) == 2 else ROLES[1:]
    return [("anchor", each.anchor), *zip(names, each.candidates, strict=True)]


def slow_counts(records, tested, level):
    """What `find_leaks` has to count, by comparing all with all."""

    def is_in(sentence, text):
        return level_of(sentence, text) <= level

    sentences = {side.strip() for pair in tested.pairs for side in (pair.sentence1, pair.sentence2)}
    hits = {
        (sentence, role, each.line)
        for sentence in sentences
        for each in records
        for role, text in texts_of(each)
        if is_in(sentence, text)
    }
    found = {sentence for sentence, _, _ in hits}
    sides = [(pair.sentence1.strip(), pair.sentence2.strip()) for pair in tested.pairs]
    rows = [[text for _, text in texts_of(each)] for each in records]
    return {
        "sentences": len(found),
        "roles": {role: len({s for s, as_role, _ in hits if as_role == role}) for role in ROLES},
        "both_sides": sum(left in found and right in found for left, right in sides),
        "one_row": sum(
            any(
                is_in(left, row[i]) and is_in(right, row[j])
                for row in rows
                for i in range(len(row))
                for j in range(len(row))
                if i != j
            )
            for left, right in sides
        ),
        "lines": tuple(sorted({line for _, _, line in hits})),
    }


def counts(found, level):
    each = found.counts[level]
    return {name: getattr(each, name) for name in each.__slots__}


RECORDS = st.lists(
    st.lists(SENTENCES, min_size=3, max_size=4).map(tuple), min_size=1, max_size=8
).map(lambda rows: [record(line, *row) for line, row in enumerate(rows, 1)])
TASKS = st.lists(
    st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=6), min_size=1, max_size=3
).map(lambda sets: [task(f"T{number}", *pairs) for number, pairs in enumerate(sets)])


@pytest.mark.unmeasured
@settings(max_examples=150, deadline=None)
@given(RECORDS, TASKS)
def test_counts_are_those_of_comparing_all_with_all(records, tasks):
    for tested, found in zip(tasks, find_leaks(records, tasks), strict=True):
        for number, level in enumerate(LEVELS):
            assert counts(found, level) == slow_counts(records, tested, number), level


@pytest.mark.unmeasured
@settings(max_examples=60, deadline=None)
@given(RECORDS, TASKS, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_tasks_does_not_matter(records, tasks, shuffler):
    before = find_leaks(records, tasks)
    shuffler.shuffle(records)
    after = find_leaks(records, tasks[::-1])
    assert after[::-1] == before


@pytest.mark.unmeasured
@settings(max_examples=60, deadline=None)
@given(RECORDS, TASKS)
def test_levels_include_each_other_and_leaks_are_what_is_counted(records, tasks):
    for found in find_leaks(records, tasks):
        for narrow, wide in pairwise(LEVELS):
            for name, few in counts(found, narrow).items():
                many = counts(found, wide)[name]
                if name == "roles":
                    assert all(few[role] <= many[role] for role in ROLES)
                else:
                    assert set(few) <= set(many) if name == "lines" else few <= many
        at = [leak.level for leak in found.leaks]
        assert at == sorted(at, key=LEVELS.index)
        for number, level in enumerate(LEVELS):
            reached = sum(LEVELS.index(each) <= number for each in at)
            assert reached == found.counts[level].sentences
        by_line = {each.line: dict(texts_of(each)) for each in records}
        for leak in found.leaks:
            assert by_line[leak.line][leak.role] == leak.text
            assert LEVELS[level_of(leak.sentence, leak.text)] == leak.level


def test_a_set_against_itself_leaks_everything():
    shuffler = random.Random(7)
    pairs = [
        tuple(" ".join(shuffler.choices(WORDS, k=6)) + f" {line} {side}" for side in "ab")
        for line in range(40)
    ]
    records = [record(line, left, right, "else") for line, (left, right) in enumerate(pairs, 1)]
    (found,) = find_leaks(records, [task("self", *pairs)])
    for level in LEVELS:
        each = found.counts[level]
        assert (each.sentences, each.both_sides, each.one_row) == (80, 40, 40)
        assert found.share(level) == 1
    assert found.counts["exact"].lines == tuple(range(1, 41))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.text("abc", min_size=1), min_size=3, max_size=3), min_size=1),
    st.lists(st.tuples(st.text("xyz", min_size=1), st.text("xyz", min_size=1)), min_size=1),
)
def test_other_letters_leak_nothing(rows, pairs):
    records = [record(line, *row) for line, row in enumerate(rows, 1)]
    (found,) = find_leaks(records, [task("T", *pairs)])
    assert found.leaks == ()
    assert all(found.counts[level].sentences == 0 for level in LEVELS)


def test_the_first_line_of_the_closest_level_is_told():
    records = [
        record(1, "An old man does n't sing .", "x", "y"),
        record(4, "z", "An old man doesn't sing.", "An old man doesn't sing."),
        record(9, "An old man doesn't sing.", "x", "y"),
    ]
    (found,) = find_leaks(records, [task("T", ("An old man doesn't sing. ", "nothing like it"))])
    (leak,) = found.leaks
    assert (leak.level, leak.line, leak.role) == ("exact", 4, "chosen")
    assert found.counts["exact"].roles == {"anchor": 1, "chosen": 1, "neutral": 0, "rejected": 1}
    assert found.counts["normalised"].lines == (1, 4, 9)


def test_a_pair_stands_together_only_as_two_texts_of_one_row():
    pair = ("A man is playing the piano.", "A man is playing the piano!")
    alone = record(1, pair[0], "x", "y")
    (found,) = find_leaks([alone], [task("T", pair)])
    assert found.counts["normalised"].both_sides == 1  # one text gives both away
    assert found.counts["normalised"].one_row == 0
    (found,) = find_leaks([alone, record(2, "x", pair[1], pair[0])], [task("T", pair)])
    assert found.counts["exact"].one_row == 1


def test_pairs_count_as_often_as_the_set_has_them():
    pair = ("one sentence here", "another one there")
    (found,) = find_leaks([record(1, *pair, "x")], [task("T", pair, pair, pair[::-1])])
    assert (found.num_sentences, found.num_pairs) == (2, 3)
    assert (found.counts["exact"].both_sides, found.counts["exact"].one_row) == (3, 3)


def test_senteval_text_meets_the_raw_text(shared_data):
    """Every sentence of the tokenised copy of a real set has the form of a raw one."""
    raw, tokenised = (
        (shared_data / folder / "STS16" / "headlines.tsv").read_text("utf-8").splitlines()
        for folder in ("sts", "sts_senteval")
    )
    rows = [record(line, *text.split("\t")[1:], "x") for line, text in enumerate(raw, 1)]
    pairs = [tuple(text.split("\t")[1:]) for text in tokenised]
    (found,) = find_leaks(rows, [task("headlines", *pairs)])
    assert found.share("exact") < 0.5
    assert found.share("normalised") == 1
    assert found.counts["normalised"].one_row == found.num_pairs == 249


def test_nothing_to_look_for_is_an_undefined_share():
    (found,) = find_leaks([record(1, "a", "b", "c")], [StsTask("T", "file", ())])
    assert found.share() != found.share()
    assert found.num_sentences == 0


@pytest.mark.parametrize("count", [2, 3])
def test_a_neutral_sentence_has_its_own_role(count):
    texts = ["first of all", "in the middle", "last of all"][:: 1 if count == 3 else 2]
    (found,) = find_leaks([record(1, "x", *texts)], [task("T", ("in the middle", "last of all"))])
    assert found.counts["exact"].roles["neutral"] == (count == 3)
    assert found.counts["exact"].roles["rejected"] == 1
