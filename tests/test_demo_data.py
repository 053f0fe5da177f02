"""The packaged demo data keeps the promises that the demo makes about it."""

import importlib.resources
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from sempa_mlx.commands.demo import QUERIES, _halves
from sempa_mlx.data.preferences import read_preferences
from sempa_mlx.data.readers import read_lines
from sempa_mlx.data.records import StsTask
from sempa_mlx.data.sources import dev_source, training_source
from sempa_mlx.data.sts_files import read_sts_file
from sempa_mlx.data.sts_sets import load_dev_pairs

FIELDS = ("anchor", "entailment", "neutral", "contradiction")


@pytest.fixture(scope="module")
def triplets():
    lines = training_source("demo").path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def pairs():
    return read_sts_file(dev_source("demo").path)


def plain(sentence):
    """A sentence without case, blanks and punctuation."""
    return re.sub(r"\W+", "", sentence).casefold()


def sentences_of(pairs):
    return [plain(text) for pair in pairs for text in (pair.sentence1, pair.sentence2)]


def test_the_data_is_found_as_package_data():
    folder = Path(str(importlib.resources.files("sempa_mlx.data.demo")))
    assert {path.suffix for path in folder.iterdir() if path.is_file()} == {
        ".py",
        ".jsonl",
        ".tsv",
        ".txt",
    }


def test_triplets_have_four_fields(triplets):
    assert len(triplets) >= 600
    for row in triplets:
        assert row.keys() == set(FIELDS)
        assert all(row[field].strip() and row[field] == row[field].strip() for field in FIELDS)


def test_no_sentence_stands_twice(triplets):
    counts = Counter(plain(row[field]) for row in triplets for field in FIELDS)
    assert [text for text, count in counts.items() if count > 1] == []


def test_no_row_is_dropped_by_the_reader(triplets):
    for candidates in (2, 3):
        report = read_preferences(training_source("demo").path, candidates=candidates).report
        assert report.kept == report.rows == len(triplets)
        assert report.ignored_keys == ()


def test_length_does_not_give_the_answer_away(triplets):
    """A model must not win by preferring short answers."""
    shorter = sum(len(row["entailment"]) < len(row["contradiction"]) for row in triplets)
    assert 0.3 < shorter / len(triplets) < 0.7


def test_pairs_cover_the_whole_scale(pairs):
    assert len(pairs) >= 200
    assert all(0 <= pair.score <= 5 for pair in pairs)
    buckets = Counter(min(int(pair.score), 4) for pair in pairs)
    assert all(buckets[bucket] >= len(pairs) / 10 for bucket in range(5)), buckets


def test_nothing_of_the_pairs_is_trained_on(triplets, pairs):
    trained = {plain(row[field]) for row in triplets for field in FIELDS}
    assert trained.isdisjoint(sentences_of(pairs))


def test_the_half_that_chooses_and_the_half_that_tests_share_nothing(pairs):
    whole = StsTask("demo", "dev", load_dev_pairs(dev_source("demo").path, None))
    dev, test = _halves(whole)
    assert len(dev.pairs) + len(test.pairs) == len(pairs)
    assert abs(len(dev.pairs) - len(test.pairs)) <= 1
    assert set(dev.pairs).isdisjoint(test.pairs)
    assert set(sentences_of(dev.pairs)).isdisjoint(sentences_of(test.pairs))
    for half in (dev, test):
        buckets = Counter(min(int(pair.score), 4) for pair in half.pairs)
        assert all(buckets[bucket] >= 10 for bucket in range(5)), buckets


def test_sentences_to_search_are_distinct_and_unseen(triplets, pairs):
    path = training_source("demo").path.with_name("sentences.txt")
    lines = [line.text for line in read_lines(path)]
    assert len(lines) > max(QUERIES) + 3
    assert len({plain(line) for line in lines}) == len(lines)
    assert all(line.strip() for line in lines)
    known = {plain(row[field]) for row in triplets for field in FIELDS}
    assert known.isdisjoint(plain(line) for line in lines)
