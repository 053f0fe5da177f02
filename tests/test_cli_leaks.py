"""`sempa-mlx data leaks` on small files."""

import json

import pytest

from tests.command import done, refused, run


@pytest.fixture
def files(tmp_path):
    rows = [
        {
            "anchor": "A man does n't sing .",
            "entailment": "He is silent.",
            "contradiction": "He sings.",
        },
        {
            "anchor": "Dogs run.",
            "entailment": "Animals run fast.",
            "contradiction": "Cats sleep here.",
        },
    ]
    for row, neutral in zip(rows, ("He is at home.", "It is a sunny day."), strict=True):
        row["neutral"] = neutral
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = tmp_path / "test.tsv"
    test.write_text(
        "1\tA man doesn't sing.\tHe is silent.\n"
        "2\tIt is a sunny day.\tNobody is here.\n"
        "3\tAnimals run fast!\tThe moon is bright.\n"
    )
    return train, test


def test_the_document_tells_levels_roles_and_lines(files, tmp_path):
    train, test = files
    out = tmp_path / "leaks.json"
    document = done("--json", "data", "leaks", train, "--data", test, "--out", out).document
    assert json.loads(out.read_text()) == document
    assert (document["rows"], document["candidates"]) == (2, 2)
    (task,) = document["tasks"]
    assert (task["task"], task["protocol"]) == ("test.tsv", "file")
    assert (task["sentences"], task["pairs"]) == (6, 3)
    exact, normalised = (task["levels"][level] for level in ("exact", "normalised"))
    assert (exact["sentences"], exact["one_row"], exact["lines"]) == (1, 0, [1])
    assert (normalised["sentences"], normalised["share"]) == (3, 0.5)
    assert normalised["roles"] == {"anchor": 1, "chosen": 2, "neutral": 0, "rejected": 0}
    assert (normalised["both_sides"], normalised["one_row"], normalised["lines"]) == (1, 1, [1, 2])
    assert task["leaks"][0] == {
        "sentence": "He is silent.",
        "level": "exact",
        "line": 1,
        "role": "chosen",
        "text": "He is silent.",
        "similarity": 1.0,
    }


def test_the_table_shows_examples_with_their_lines(files):
    train, test = files
    shown = done("data", "leaks", train, "--data", test, "--show", 2).out
    assert "STS test sentences in train.jsonl (2 rows)" in shown
    assert "as neutral" not in shown
    assert "test.tsv: 2 of 3" in shown
    assert "He is silent.\n    exact, line 1, chosen\n" in shown
    assert "    normalised, line 1, anchor: A man does n't sing ." in shown
    assert "line" not in done("data", "leaks", train, "--data", test, "--show", 0).out


def test_neutrals_are_looked_at_when_asked_for(files):
    train, test = files
    shown = done("data", "leaks", train, "--data", test, "--candidates", 3).out
    assert "as neutral" in shown
    assert "It is a sunny day.\n    exact, line 2, neutral" in shown


@pytest.mark.parametrize(("share", "code"), [(0.5, 0), (0.49, 1), (0, 1), (1, 0)])
def test_a_share_over_the_limit_is_exit_code_1(files, share, code):
    train, test = files
    outcome = run("data", "leaks", train, "--data", test, "--fail-over", share)
    assert outcome.code == code
    assert ("0.5000 of the sentences of test.tsv" in outcome.err) is bool(code)
    assert "test.tsv normalised" in outcome.out


def test_the_packaged_rows_can_be_named_and_faults_are_told(files, tmp_path):
    _, test = files
    assert "in demo (" in done("data", "leaks", "demo", "--data", test).out
    refused(3, "data", "leaks", "no-such.jsonl", "--data", test)
    refused(3, "data", "leaks", "demo", "--data", tmp_path / "nowhere")
    refused(2, "data", "leaks", "demo", "--data", test, "--tasks", "STSB")


def test_what_is_read_is_not_written(files):
    train, test = files
    for out in files:
        before = out.read_bytes()
        outcome = refused(2, "data", "leaks", train, "--data", test, "--out", out)
        assert "is read, so it is not written" in outcome.errors[0]
        assert out.read_bytes() == before
    outcome = refused(2, "data", "leaks", train, "--data", test, "--tasks", "TYPO")
    assert "--tasks" in outcome.err, "told before the rows are looked for"
