"""Fault 7: a loss or gradient that is NaN or infinite.

The guard itself: tests/training/test_trainer.py.
"""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from sempa_mlx.training.trainer import Trainer
from tests.command import done, metrics_of, refused, training
from tests.faults.conftest import SETTINGS

DROPPED = '{"anchor": "A cat.", "entailment": "A dog.", "contradiction": "A dog."}\n'


def poison(monkeypatch, from_step, to_step, value):
    whole = Trainer._contributions

    def poisoned(trainer, step, batch):
        parts, gradients = whole(trainer, step, batch)
        if from_step <= step <= to_step:
            gradients = tree_map(lambda each: each * value, gradients)
        return parts, gradients

    monkeypatch.setattr(Trainer, "_contributions", poisoned)


def newest_adapter(folder):
    return mx.load(str(max(folder.glob("checkpoints/step-*")) / "adapter.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_bad_step_changes_nothing_and_its_rows_are_logged(space, tmp_path, monkeypatch, value):
    poison(monkeypatch, 2, 2, value)
    rows = (space / "pairs.jsonl").read_text()
    data = tmp_path / "pairs.jsonl"
    data.write_text(DROPPED + rows)  # so that a row is not where it is in the file
    command = training(space, *SETTINGS, data=data)
    outcome = done(*command, "--adapter-path", tmp_path / "run")
    assert "step 2 skipped: loss or gradient not finite" in outcome.err
    (line,) = [line for line in metrics_of(tmp_path / "run") if "skipped_rows" in line]
    assert line["step"] == 2
    assert len(line["skipped_rows"]) == 4
    assert min(line["skipped_rows"]) >= 2, "lines of the file, of which the first was dropped"
    kept = newest_adapter(tmp_path / "run")
    assert all(np.isfinite(np.array(each)).all() for each in kept.values())


def test_bad_steps_in_a_row_end_the_run_with_its_last_checkpoint_whole(
    space, tmp_path, monkeypatch
):
    poison(monkeypatch, 2, 99, float("nan"))
    command = training(space, *SETTINGS, "train.epochs=3")
    outcome = refused(1, *command, "--iters", 9, "--adapter-path", tmp_path / "run")
    assert "3 steps in a row had no finite loss or gradient (last: 4)" in outcome.errors[0]
    assert "is kept" in outcome.err
    kept = newest_adapter(tmp_path / "run")
    assert all(np.isfinite(np.array(each)).all() for each in kept.values())
    assert not (tmp_path / "run" / "results.json").exists()
