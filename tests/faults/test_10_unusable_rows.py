"""Fault 10: missing, empty or foreign fields, rows that teach nothing, repeats, test sentences.

Every form and rule: tests/data/test_preferences.py, tests/data/test_leaks.py.
"""

import json

import pytest

from tests.command import done, refused, run, write_pairs

ROW = {"anchor": "A cat sleeps.", "entailment": "A cat is asleep.", "contradiction": "It runs."}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"anchor": "a", "entailment": "b"}, "the field `contradiction` is missing"),
        (ROW | {"anchor": ""}, "the field `anchor` is empty"),
        (ROW | {"entailment": " \t"}, "the field `entailment` holds only blanks"),
        (ROW | {"contradiction": 7}, "has type int, not text"),
        (ROW | {"contradiction": None}, "the field `contradiction` is null"),
        (ROW | {"contradiction": ["a"]}, "has type list, not text"),
    ],
)
def test_faulty_rows_are_listed_and_start_nothing(here, row, fault):
    write(here / "rows.jsonl", ROW, row)
    outcome = run("data", "check", "rows.jsonl")
    assert outcome.code == 3
    (error,) = outcome.errors
    assert error.startswith("error: rows.jsonl:2: ")
    assert fault in error
    refused(3, "train", "--data", "rows.jsonl", "--dry-run")


def test_every_fault_of_every_row_is_shown(here):
    write(here / "rows.jsonl", ROW, *(12 * [{"anchor": "a"}]))
    outcome = run("data", "check", "rows.jsonl")
    assert len(outcome.errors) == 24
    assert "24 problems; mend or remove" in outcome.err


def test_rows_that_teach_nothing_are_counted_by_rule(here):
    same = ROW | {"contradiction": ROW["entailment"]}
    write(here / "rows.jsonl", ROW, same, ROW, same)
    outcome = done("data", "check", "rows.jsonl")
    assert "4 rows, 1 kept" in outcome.out
    assert "dropped 2: candidates do not differ" in outcome.out
    assert "dropped 1: exact repeat of an earlier row" in outcome.out


def test_test_sentences_among_the_rows_can_fail_a_command(here):
    write(here / "rows.jsonl", ROW | {"anchor": "A man has 3 books."})
    write_pairs(here / "sts" / "STSB" / "test.tsv")
    arguments = ("data", "leaks", "rows.jsonl", "--data", "sts", "--tasks", "STSB")
    assert done(*arguments, "--json").document
    assert run(*arguments, "--fail-over", 0).code == 1
