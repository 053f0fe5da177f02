"""Fault 1: kill -9 while something is written. What was there, or what is new, is whole.

Kills at every call of a save: tests/training/test_checkpoint.py. At any moment of a run:
tests/test_resume.py.
"""

import os
import shutil
import subprocess
import sys

import pytest

from sempa_mlx.files import new_folder, replacing_together, write_text
from tests.command import done, metrics_of, run, training
from tests.faults.conftest import SETTINGS
from tests.faults.failing_files import Disk, temporaries

pytestmark = pytest.mark.unmeasured

KILLED_RUN = """
import sys
from tests.faults.failing_files import Disk
from sempa_mlx.__main__ import run

folder, number = sys.argv[1], int(sys.argv[2])
sys.argv = ["sempa-mlx", *sys.argv[3:]]
with Disk(folder, number, kills=True).watched():
    run()
"""


def killed(folder, number, write, *given):
    """Run a writer in a process of its own that is killed at a call; tell whether it was."""
    child = os.fork()
    if not child:
        code = 1
        try:
            with Disk(folder, number, kills=True).watched():
                write(*given)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def write_pair(folder, text):
    with replacing_together(folder / "a.txt", folder / "b.txt") as temporaries_of:
        for path in temporaries_of:
            path.write_text(text)


def make_folder(folder):
    with new_folder(folder / "new") as stage:
        (stage / "a.txt").write_text("whole")
        (stage / "b.txt").write_text("whole")


def test_a_text_is_the_old_or_the_new_one_and_the_next_write_cleans_up(tmp_path):
    for number in range(1, 20):
        folder = tmp_path / str(number)
        write_text(folder / "a.txt", "old " * 99)
        was_killed = killed(folder, number, write_text, folder / "a.txt", "new " * 99)
        assert (folder / "a.txt").read_text() in ("old " * 99, "new " * 99)
        write_text(folder / "a.txt", "third")
        assert [path.name for path in folder.iterdir()] == ["a.txt"]
        if not was_killed:
            break
    assert 3 < number < 19


def test_each_file_of_several_is_the_old_or_the_new_one(tmp_path):
    for number in range(1, 30):
        folder = tmp_path / str(number)
        write_pair(folder, "old")
        was_killed = killed(folder, number, write_pair, folder, "new")
        assert {(folder / name).read_text() for name in ("a.txt", "b.txt")} <= {"old", "new"}
        write_pair(folder, "third")
        assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.txt"]
        if not was_killed:
            break
    assert 5 < number < 29


def write_sealed(folder, text):
    paths = (folder / "a.txt", folder / "b.txt", folder / "seal.txt")
    with replacing_together(*paths, is_last_seal=True) as temporaries_of:
        for path in temporaries_of:
            path.write_text(text)


def test_files_under_a_seal_are_all_old_or_all_new(tmp_path):
    seen = set()
    for number in range(1, 40):
        folder = tmp_path / str(number)
        write_sealed(folder, "old")
        was_killed = killed(folder, number, write_sealed, folder, "new")
        paths = [folder / name for name in ("a.txt", "b.txt", "seal.txt")]
        found = {path.read_text() for path in paths if path.exists()}
        has_seal = (folder / "seal.txt").exists()
        assert len(found) == 1 or not has_seal
        seen.add(has_seal)
        write_sealed(folder, "third")
        assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.txt", "seal.txt"]
        if not was_killed:
            break
    assert 5 < number < 39
    assert seen == {True, False}


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    for number in range(1, 30):
        folder = tmp_path / str(number)
        folder.mkdir()
        was_killed = killed(folder, number, make_folder, folder)
        if (folder / "new").exists():
            assert (folder / "new" / "b.txt").read_text() == "whole"
            shutil.rmtree(folder / "new")
        make_folder(folder)
        assert [path.name for path in folder.iterdir()] == ["new"]
        if not was_killed:
            break
    assert 5 < number < 29


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    other = tmp_path / f".sempa-tmp-{os.getppid()}-a.txt"
    other.write_text("half")
    write_text(tmp_path / "a.txt", "whole")
    assert other.read_text() == "half"


def count_calls(space, folder):
    """The calls of a whole run on its folder."""
    with Disk(folder).watched() as disk:
        done(*training(space, *SETTINGS), "--adapter-path", folder)
    return disk.calls


@pytest.mark.parametrize(
    "share", [0.55, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.1, 0.3, 0.8))]
)
def test_a_run_that_was_killed_while_it_wrote_goes_on_to_the_same_end(space, tmp_path, share):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    number = round(share * len(count_calls(space, whole)))
    command = [*training(space, *SETTINGS), "--adapter-path", folder]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, str(folder), str(number), *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -9, ended.stderr
    if list(folder.glob("checkpoints/step-*")):
        resumed = done("train", "--resume", "--adapter-path", folder)
        assert "was cut off: process" in resumed.err
    else:
        assert "holds an earlier run" in run(*command).err
        done(*command, "--force")
    for name in ("adapters.safetensors", "encoder.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    losses = [[line.get("loss") for line in metrics_of(each)] for each in (folder, whole)]
    assert losses[0] == losses[1]
    assert temporaries(tmp_path) == []
    assert not (folder / "run.lock").exists()
