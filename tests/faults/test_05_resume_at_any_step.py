"""Fault 5: a run that was stopped at some step ends as if it had not been.

To the bit from every step, with dropout and a schedule: tests/test_resume.py.
"""

import pytest

from sempa_mlx import load_config, train
from tests.command import metrics_of

STEPS = 4


@pytest.fixture(scope="module")
def sets(space):
    return (
        f"model.name={space / 'base'}",
        f"data.train={space / 'pairs.jsonl'}",
        f"eval.data={space / 'dev.tsv'}",
        f"train.iters={STEPS}",
        "train.batch_size=3",
        "train.learning_rate=0.02",
        "lora.dropout=0.1",
        "eval.every=2",
    )


@pytest.mark.parametrize("step", [1, 3])
def test_from_python_a_stopped_run_ends_like_a_whole_one(sets, tmp_path, step):
    whole, parts = (
        load_config("demo", sets=[*sets, f"output.path={tmp_path / name}"])
        for name in ("whole", "parts")
    )
    expected = train(whole)
    steps = []
    stopped = train(parts, on_event=steps.append, should_stop=lambda: steps[-1].step == step)
    assert stopped.is_stopped
    found = train(parts, resume=True)
    assert not found.is_stopped
    assert (found.step, found.score, found.scale) == (expected.step, expected.score, expected.scale)
    for name in ("adapters.safetensors", "encoder.json"):
        assert (found.folder / name).read_bytes() == (expected.folder / name).read_bytes()
    losses = [[line.get("loss") for line in metrics_of(each.folder)] for each in (found, expected)]
    assert losses[0] == losses[1]
