"""Fault 23: two trainings into one run folder; other commands beside a training."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time

import pytest

from sempa_mlx.errors import RunError
from sempa_mlx.run.lock import LOCK_FILE, locked, refuse_in_use
from tests.command import done, files_below, refused, training
from tests.faults.conftest import SETTINGS
from tests.faults.test_06_signals import started

pytestmark = pytest.mark.unmeasured

HOLDER = """
import sys
from pathlib import Path
from sempa_mlx.run.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder `run`."""
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_training_is_refused_with_process_and_age(space, holder, tmp_path):
    before = files_below(tmp_path)
    for more in ([], ["--force"], ["--dry-run"]):
        outcome = refused(1, *training(space, *SETTINGS), "--adapter-path", tmp_path / "run", *more)
        assert "another training writes into" in outcome.errors[0]
        assert f"process {holder.pid}, begun" in outcome.err
        assert "ago" in outcome.err
        assert "nothing was started" in outcome.err
    assert files_below(tmp_path) == before


def test_a_training_that_goes_on_is_refused_and_the_first_one_is_not_disturbed(space, tmp_path):
    folder = tmp_path / "run"
    with started(space, tmp_path) as process:
        outcome = refused(1, "train", "--resume", "--adapter-path", folder)
        assert f"process {process.pid}, begun" in outcome.err
        done("embed", space / "notes.txt", "-o", tmp_path / "a.npy", "--adapter-path", folder)
        (tmp_path / "go-on").touch()
        process.communicate(timeout=250)
    assert process.returncode == 0
    assert not (folder / LOCK_FILE).exists()
    found, expected = ((each / "adapters.safetensors").read_bytes() for each in
                       (folder, space / "run"))  # fmt: skip
    assert found == expected


def test_the_lock_of_a_process_that_was_killed_is_taken_over_with_a_line(holder, tmp_path):
    folder = tmp_path / "run"
    holder.kill()
    holder.wait()
    assert (folder / LOCK_FILE).exists()
    refuse_in_use(folder)
    with locked(folder) as remark:
        assert f"process {holder.pid}, begun" in remark
        assert "is gone" in remark
    assert list(folder.iterdir()) == []


def test_a_lock_of_before_a_restart_does_not_hold_though_the_number_lives_again(tmp_path):
    ours = {"process": os.getpid(), "host": socket.gethostname(), "since": time.time() - 7200}
    (tmp_path / LOCK_FILE).write_text(json.dumps(ours))
    with locked(tmp_path) as remark:
        assert "begun 2 hours ago" in remark


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": "x"}', "\0"])
def test_a_lock_that_says_nothing_is_taken_over(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    (tmp_path / "config.yaml").write_text("")
    with locked(tmp_path) as remark:
        assert remark == ""
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_link_in_the_place_of_the_lock_is_not_followed(space, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run" / LOCK_FILE).symlink_to(tmp_path / "precious")
    refused(4, *training(space, *SETTINGS), "--adapter-path", tmp_path / "run", "--force")
    assert (tmp_path / "precious").read_text() == "precious"


def test_folders_made_for_a_lock_go_again_unless_used(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK_FILE).is_file()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def hold_in_turn(folder, counts, rounds):
    """Take the lock again and again; count how often two held it at once."""
    for _ in range(rounds):
        try:
            with locked(folder):
                counts[0] += 1
                counts[1] += counts[0] != 1
                time.sleep(0.0005)
                counts[0] -= 1
                counts[2] += 1
        except RunError:
            pass


def test_never_two_at_once(tmp_path):
    """Owners that let go delete the file that others are about to lock."""
    tmp_path.joinpath("run").mkdir()
    tmp_path.joinpath("run", "config.yaml").touch()
    forking = multiprocessing.get_context("fork")
    counts = forking.Array("i", 3, lock=False)
    workers = [
        forking.Process(target=hold_in_turn, args=(tmp_path / "run", counts, 200)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert counts[0] == counts[1] == 0
    assert counts[2] > 0
