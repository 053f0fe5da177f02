"""Fault 14: a last batch that is not full, fewer rows than a batch, a single row.

Sums over real counts: tests/training/test_trainer.py; batches: tests/data/test_batching.py.
"""

import numpy as np
import pytest

from tests.command import done, metrics_of, results_of, training, write_triplets


def train(space, folder, count, batch, *sets):
    write_triplets(folder / "rows.jsonl", count=count)
    command = training(space, "eval.dial=null", *sets, data=folder / "rows.jsonl")
    out = folder / f"run-{batch}"
    done(*command, "--batch-size", batch, "--iters", 99, "--adapter-path", out)
    steps = [line for line in metrics_of(out) if "loss" in line]
    return out, steps


@pytest.mark.parametrize(("count", "batch", "steps"), [(7, 3, 3), (3, 8, 1), (1, 4, 1)])
def test_every_row_is_used(space, tmp_path, count, batch, steps):
    out, lines = train(space, tmp_path, count, batch)
    assert len(lines) == steps
    assert results_of(out)["pairs"] == count
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert all(0 <= line["rewards/accuracies"] <= 1 for line in lines)


def test_a_batch_is_divided_by_what_is_in_it(space, tmp_path):
    """A batch of 3 rows in 8 places is that of 3, in one pass or several."""
    (_, (large,)), (_, (exact,)), (_, (cut,)) = (
        train(space, tmp_path, 3, 8),
        train(space, tmp_path, 3, 3),
        train(space, tmp_path, 3, 4, "train.micro_batch_tokens=64"),
    )
    for name in ("loss", "grad_norm", "logps/chosen", "rewards/margins"):
        assert large[name] == exact[name]
        assert cut[name] == pytest.approx(exact[name], rel=1e-4, abs=1e-5)
