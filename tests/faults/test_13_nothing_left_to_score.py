"""Fault 13: a row so long that nothing of its completion would be scored.

Rows at the limit: tests/model/test_prompts.py.
"""

import json

from tests.command import done, metrics_of, refused, results_of, training
from tests.faults.conftest import SETTINGS

LONG = {"anchor": "a", "entailment": "word " * 400, "contradiction": "b"}


def test_rows_that_do_not_fit_are_dropped_and_counted(space, tmp_path):
    rows = (space / "pairs.jsonl").read_text() + json.dumps(LONG) + "\n"
    (tmp_path / "rows.jsonl").write_text(rows)
    command = training(space, *SETTINGS, "model.max_tokens=300", data=tmp_path / "rows.jsonl")
    outcome = done(*command, "--adapter-path", tmp_path / "run")
    assert "12 pairs (1 dropped)" in outcome.err
    assert results_of(tmp_path / "run")["pairs"] == 12
    for line in metrics_of(tmp_path / "run"):
        assert line.get("logps/chosen", -1) < 0


def test_a_file_of_such_rows_alone_starts_nothing(space, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(LONG) + "\n")
    command = training(space, *SETTINGS, "model.max_tokens=300", data=tmp_path / "rows.jsonl")
    outcome = refused(3, *command, "--adapter-path", tmp_path / "run")
    assert "all 1 rows are longer than 300 tokens" in outcome.errors[0]
    assert "raise model.max_tokens" in outcome.err
    assert not (tmp_path / "run").exists()
