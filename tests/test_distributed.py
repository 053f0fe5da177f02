"""Two local processes under mlx.launch do what one does."""

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.arrays import assert_close
from tests.command import done, metrics_of, training, write_inputs

pytestmark = pytest.mark.unmeasured

LAUNCH = Path(sys.executable).with_name("mlx.launch")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), num_hidden_layers=1)


def launched(*arguments):
    """Run `sempa-mlx ARGUMENTS` in two processes joined by a ring of sockets."""
    command = [LAUNCH, "-n", "2", "--backend", "ring", "--", sys.executable, "-m", "sempa_mlx"]
    found = subprocess.run(
        [str(word) for word in (*command, *arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found


def steps_of(folder):
    return [line for line in metrics_of(folder) if "loss" in line]


@pytest.mark.parametrize("loss", ["sigmoid", "0.5 sigmoid + embedding + 0.1 kl"])
def test_training_follows_the_curve_of_one_process(loss, inputs, tmp_path):
    """Batches of 5 of 12 rows: the processes get unequal shares, and the last batch has two."""
    sets = (f"objective.loss={loss}", "train.epochs=2")
    command = [*training(inputs, *sets), "--iters", 6, "--batch-size", 5]
    done(*command, "--adapter-path", tmp_path / "one")
    launched(*command, "--adapter-path", tmp_path / "two")
    one, two = steps_of(tmp_path / "one"), steps_of(tmp_path / "two")
    assert [step["step"] for step in two] == [1, 2, 3, 4, 5, 6], "one process writes"
    for left, right in zip(one, two, strict=True):
        names = ["loss", "rewards/margins", "logps/chosen"]
        if left["step"] > 1:  # margins of step 1 are zero up to rounding
            names.append("rewards/accuracies")
        for name in names:
            assert right[name] == pytest.approx(left[name], abs=1e-4), name
        assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-3)
    left, right = (
        mx.load(str(tmp_path / each / "adapters.safetensors")) for each in ("one", "two")
    )
    assert_close(right, left, atol=1e-4)


def test_a_loss_that_leaves_the_adapter_alone_keeps_processes_together(inputs, tmp_path):
    """What a process does not use it has to add up all the same, or the sums that follow shift."""
    coder = tmp_path / "coder.safetensors"
    sizes = ("--k", 4, "--hidden", 40, "--epochs", 1)
    fit = ("sparse", "fit", "--model", inputs / "base", "--data", inputs / "pairs.jsonl")
    done(*fit, *sizes, "--out", coder)
    sets = ("objective.loss=sigmoid + 0.5 code", f"sparse.start={coder}", "sparse.k=4")
    command = training(inputs, *sets, "sparse.detach=true", "eval.dial=null")
    command += ["--iters", 3, "--batch-size", 5]
    done(*command, "--adapter-path", tmp_path / "one")
    launched(*command, "--adapter-path", tmp_path / "two")
    for left, right in zip(steps_of(tmp_path / "one"), steps_of(tmp_path / "two"), strict=True):
        for name in ("loss", "loss/code", "grad_norm"):
            assert right[name] == pytest.approx(left[name], rel=1e-3), name


def test_embedding_gives_the_vectors_of_one_process(inputs, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"A man reads {number} books.\n" for number in range(40)))
    command = ["embed", texts, "--model", inputs / "base", "--batch-tokens", 128]
    done(*command, "-o", tmp_path / "one.npy")
    found = launched(*command, "-o", tmp_path / "two.npy")
    assert found.stdout.count("two.npy") == 1, "one process talks"
    one, two = np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy")
    np.testing.assert_allclose(two, one, atol=1e-6)
    assert (tmp_path / "two.json").is_file()


def test_an_update_keeps_the_same_lines_in_all_processes(inputs, tmp_path):
    lines = [f"A man reads {number} books.\n" for number in range(40)]
    texts = tmp_path / "texts.txt"
    command = ["embed", texts, "--model", inputs / "base", "--batch-tokens", 128]
    texts.write_text("".join(lines[::2]))
    done(*command, "-o", tmp_path / "two.npy")
    texts.write_text("".join(lines))
    done(*command, "-o", tmp_path / "one.npy")
    launched(*command, "-o", tmp_path / "two.npy", "--update")
    one, two = np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy")
    np.testing.assert_allclose(two, one, atol=1e-6)


def test_one_process_writes_to_stdout(inputs, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("A cat\nTwo dogs\nA bird\n")
    found = launched("embed", texts, "--model", inputs / "base", "-o", "-")
    rows = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    assert [row["text"] for row in rows] == ["A cat", "Two dogs", "A bird"]
