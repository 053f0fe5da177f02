"""A run that was stopped goes on as if it had not been: to the bit, from every step."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import mlx.core as mx
import pytest

from sempa_mlx.errors import UsageError
from sempa_mlx.model.lora import WEIGHTS_FILE
from sempa_mlx.run.resume import resume
from tests.arrays import assert_equal
from tests.command import (
    done,
    files_below,
    metrics_of,
    prepared,
    refused,
    results_of,
    training,
    write_inputs,
    write_triplets,
)

pytestmark = pytest.mark.unmeasured

STEPS = 6
TIMED = {"pairs_per_second", "tokens_per_second", "peak_memory_gb"}
SETTINGS = (
    f"train.iters={STEPS}",
    "train.batch_size=3",
    "train.epochs=2",
    "train.learning_rate=0.02",
    "lora.dropout=0.2",
    "eval.every=2",
    "output.keep=2",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), num_hidden_layers=1)


def run_in(inputs, folder, save_every=1):
    return prepared(inputs, f"output.path={folder}", f"output.save_every={save_every}", *SETTINGS)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    list(run_in(inputs, folder).events())
    return folder


def untimed(folder):
    """The metrics of a run without those that differ from run to run."""
    return [{name: line[name] for name in line if name not in TIMED} for line in metrics_of(folder)]


def assert_same(left, right):
    """Equal adapters, encoder settings, metrics and last checkpoints."""
    assert untimed(left) == untimed(right)
    for name in ("adapters.safetensors", "encoder.json"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    last = f"checkpoints/step-{STEPS:06d}"
    for name in ("adapter", "optimizer"):
        found, expected = (
            mx.load(str(each / last / f"{name}.safetensors")) for each in (left, right)
        )
        assert_equal(found, expected)


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_it_goes_on_to_the_bit_from_every_step(step, whole, inputs, tmp_path):
    run = run_in(inputs, tmp_path / "run")
    list(run.events(lambda: run.progress.step == step))
    assert run.is_stopped
    assert not (tmp_path / "run" / "results.json").exists()
    again = run_in(inputs, tmp_path / "run")
    assert resume(again) == ()
    assert again.progress.step == step
    list(again.events())
    assert_same(tmp_path / "run", whole)
    results = results_of(tmp_path / "run")
    assert results["steps"] == STEPS
    assert results["dev_scores"].keys() == {"0", "2", "4", "6"}


def test_what_was_logged_after_the_checkpoint_is_logged_once(whole, inputs, tmp_path):
    """As after kill -9: the folder is ahead of its last checkpoint."""
    run = run_in(inputs, tmp_path / "run", save_every=3)
    for _ in zip(range(7), run.events(), strict=False):
        pass
    assert run.progress.step == 4
    again = run_in(inputs, tmp_path / "run")
    resume(again)
    assert again.progress.step == 3
    list(again.events())
    assert_same(tmp_path / "run", whole)


def test_a_broken_checkpoint_is_passed_over_with_a_reason(whole, inputs, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    broken = tmp_path / "run" / "checkpoints" / f"step-{STEPS:06d}" / "adapter.safetensors"
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    run = run_in(inputs, tmp_path / "run")
    (skipped,) = resume(run)
    assert "adapter.safetensors" in str(skipped)
    assert run.progress.step == STEPS - 1
    list(run.events())
    assert_same(tmp_path / "run", whole)


def test_no_checkpoint_is_no_silent_new_start(whole, inputs, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = files_below(tmp_path)
    outcome = refused(1, "train", "--resume", "--adapter-path", tmp_path / "run")
    assert "no checkpoint to resume from" in outcome.err
    assert files_below(tmp_path) == before


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    outcome = refused(2, "train", "--resume", "--adapter-path", tmp_path)
    assert "holds no run to resume" in outcome.err


def test_another_run_is_refused_with_all_differences(whole, inputs, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    write_triplets(tmp_path / "other.jsonl", count=9)
    before = files_below(tmp_path)
    outcome = refused(
        2,
        "train",
        "--resume",
        "--adapter-path",
        tmp_path / "run",
        "--seed",
        5,
        "--data",
        tmp_path / "other.jsonl",
        "--set",
        "lora.rank=4",
    )
    found = "\n".join(outcome.errors)
    for name in ("train.seed: 0 in the checkpoint, 5 now", "training rows:", "lora.rank: 8 in"):
        assert name in found
    assert len(outcome.errors) == 3
    assert files_below(tmp_path) == before


def test_a_longer_run_may_follow(whole, inputs, tmp_path):
    """The number of steps may change; the schedule then follows the new number."""
    shutil.copytree(whole, tmp_path / "run")
    outcome = done("train", "--resume", "--adapter-path", tmp_path / "run", "--iters", STEPS + 2)
    assert f"going on after step {STEPS}" in outcome.err
    assert metrics_of(tmp_path / "run")[-2]["step"] == STEPS + 2


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_process_can_be_continued(kind, inputs, tmp_path):
    """The real thing: a process, a signal at some moment, and the command that it printed."""
    steps, folder = 60, tmp_path / "killed run"
    command = [*training(inputs, "train.epochs=30", "output.save_every=1"), "--iters", steps]
    done(*command, "--adapter-path", tmp_path / "whole")
    process = subprocess.Popen(
        [sys.executable, "-m", "sempa_mlx", *map(str, command), "--adapter-path", str(folder)],
        stderr=subprocess.PIPE,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "step-000004").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(kind)
    talk = process.communicate()[1]
    resumption = ["train", "--resume", "--adapter-path", str(folder)]
    if kind == signal.SIGKILL:
        assert process.returncode == -kind
    else:
        assert process.returncode == 128 + kind
        printed = talk.split("go on with: sempa-mlx ")[1].splitlines()[0]
        assert shlex.split(printed) == resumption
    assert not (folder / "results.json").exists(), "it was stopped in time"
    done(*resumption)
    left, right = (
        (each / "adapters.safetensors").read_bytes() for each in (folder, tmp_path / "whole")
    )
    assert left == right
    assert untimed(folder) == untimed(tmp_path / "whole")


@pytest.mark.parametrize(
    ("file", "name"), [("held_out.jsonl", "validation rows"), ("held.txt", "text to hold")]
)
def test_files_count_by_their_content(file, name, inputs, tmp_path):
    """A file of the same name that says something else belongs to another run."""
    write_triplets(tmp_path / "held_out.jsonl", count=5)
    (tmp_path / "held.txt").write_text("The grass is green, and the sky is blue.\n")
    sets = (
        *SETTINGS,
        f"output.path={tmp_path / 'run'}",
        f"data.dev={tmp_path / 'held_out.jsonl'}",
        f"objective.kl_text={tmp_path / 'held.txt'}",
        "objective.loss=sigmoid + 0.1 kl",
        f"train.seed={2**63 - 1}",
    )
    run = prepared(inputs, *sets)
    list(run.events(lambda: run.progress.step == 1))
    resume(prepared(inputs, *sets))
    other = {
        "held_out.jsonl": lambda path: write_triplets(path, count=6),
        "held.txt": lambda path: path.write_text("The sky is green, and the grass is blue.\n"),
    }[file]
    other(tmp_path / file)
    with pytest.raises(UsageError) as refusal:
        resume(prepared(inputs, *sets))
    assert len(refusal.value.problems) == 1
    assert name in str(refusal.value)


def test_fewer_steps_than_are_done_are_refused_and_nothing_is_lost(whole, inputs, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = files_below(tmp_path / "run")
    line = ["train", "--resume", "--adapter-path", tmp_path / "run", "--iters", STEPS - 1]
    outcome = refused(2, *line)
    assert f"step {STEPS} is done, and the run now has {STEPS - 1}" in outcome.err
    after = files_below(tmp_path / "run")
    assert {name: after[name] for name in before if "lock" not in name} == {
        name: content for name, content in before.items() if "lock" not in name
    }


def test_the_best_adapter_is_the_checkpoints_not_that_of_a_later_step(inputs, tmp_path):
    """As after kill -9 with a newer best step than the checkpoint knows."""
    folder = tmp_path / "run"
    run = run_in(inputs, folder, save_every=3)
    events = run.events()
    while run.progress.step < 3 or not list(folder.glob("checkpoints/step-000003")):
        next(events)
    kept = (folder / "adapters.safetensors").read_bytes(), (folder / "encoder.json").read_bytes()
    assert run.progress.best_step < 3, "or this shows nothing"
    later = {name: 2 * value for name, value in mx.load(str(folder / WEIGHTS_FILE)).items()}
    mx.save_safetensors(str(folder / WEIGHTS_FILE), later)
    again = run_in(inputs, folder, save_every=3)
    resume(again)
    next(again.events())
    found = (folder / "adapters.safetensors").read_bytes(), (folder / "encoder.json").read_bytes()
    assert found == kept


def test_a_run_is_resumed_or_replaced_not_both(whole, inputs, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    outcome = refused(2, "train", "--resume", "--force", "--adapter-path", tmp_path / "run")
    assert "keep one of --resume and --force" in outcome.err


def test_what_resuming_would_take_can_be_looked_at(whole, inputs, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    outcome = done("train", "--resume", "--dry-run", "--adapter-path", tmp_path / "run")
    assert "nothing was started" in outcome.err
