"""Fault 4: a run is to go on with another config, data, base or template.

Every difference in turn: tests/test_resume.py, tests/training/test_checkpoint.py.
"""

import shutil

import pytest

from tests.command import done, files_below, refused, results_of, write_triplets


@pytest.fixture
def folder(space, tmp_path):
    return shutil.copytree(space / "run", tmp_path / "run")


def test_all_differences_are_told_and_nothing_is_touched(space, folder, tmp_path):
    write_triplets(tmp_path / "other.jsonl", count=9)
    before = files_below(folder)
    outcome = refused(
        *(2, "train", "--resume", "--adapter-path", folder),
        *("--model", space / "other", "--data", tmp_path / "other.jsonl", "--beta", 0.5),
        *("--set", "data.template=P2"),
    )
    told = "\n".join(outcome.errors)
    for name in ("base weights: ", "training rows: ", "objective.beta: ", "data.template: "):
        assert name in told
    assert '"P1" in the checkpoint, "P2" now' in told
    assert len(outcome.errors) == 4
    assert "--force starts another" in outcome.err
    assert files_below(folder) == before


def test_what_does_not_decide_the_result_may_change(folder):
    """Number of steps, output, and how the sum of a step is cut up for want of memory."""
    sets = ("train.micro_batch_tokens=64", "output.keep=1")
    done(
        *("train", "--resume", "--adapter-path", folder, "--iters", 3),
        *(word for each in sets for word in ("--set", each)),
    )
    assert results_of(folder)["steps"] == 3
