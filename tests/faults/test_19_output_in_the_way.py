"""Fault 19: the output exists, is a link, lies in a folder that is read-only, or in the model's.

Refusals of each writer: tests/test_files.py, tests/test_run.py, tests/test_cli.py. Full disks:
test_02_disk_refuses.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sempa_mlx import load_config, train
from sempa_mlx.errors import UsageError
from tests.command import SENTENCES, files_below, refused, training
from tests.faults.conftest import SETTINGS

NOBODY = 65534


def unloadable(monkeypatch):
    """Let no model be loaded: a refusal has to come before."""

    def fail(*_given, **_options):
        pytest.fail("the model was loaded first")

    monkeypatch.setattr("sempa_mlx.model.recorded.load_model", fail)
    monkeypatch.setattr("sempa_mlx.run.prepare.load_model", fail)


@pytest.mark.parametrize("name", ["taken.npy", "link.npy", "taken.jsonl"])
def test_embed_refuses_before_it_loads_a_model(space, here, monkeypatch, name):
    (here / "taken.npy").write_text("precious")
    (here / "taken.jsonl").write_text("precious")
    (here / "link.npy").symlink_to("taken.npy")
    before = files_below(here)
    unloadable(monkeypatch)
    outcome = refused(2, "embed", space / "notes.txt", "-o", name, "--adapter-path", space / "run")
    assert name in outcome.errors[0]
    assert files_below(here) == before


def test_train_refuses_a_link_a_file_and_a_folder_of_other_things(space, here, monkeypatch):
    (here / "real").mkdir()
    (here / "real" / "a.jpg").write_text("precious")
    (here / "link").symlink_to("real")
    (here / "file").write_text("precious")
    before = files_below(here)
    unloadable(monkeypatch)
    for name in ("real", "link", "file"):
        refused(2, *training(space, *SETTINGS), "--adapter-path", name, "--force")
    assert files_below(here) == before


@pytest.mark.parametrize("inside", [".", "adapters", "a/b"])
def test_a_run_does_not_go_into_the_folder_of_its_model(space, inside):
    before = files_below(space / "base")
    place = space / "base" / inside
    outcome = refused(2, *training(space, *SETTINGS), "--adapter-path", place)
    assert "lies in the model's own folder" in outcome.errors[0]
    refused(2, *training(space, *SETTINGS), "--adapter-path", place, "--dry-run")
    sets = [f"model.name={space / 'base'}", f"output.path={place}"]
    with pytest.raises(UsageError, match="own folder"):
        train(load_config("demo", sets=sets))
    assert files_below(space / "base") == before


READ_ONLY = """
import os, sys
from sempa_mlx.__main__ import run
import sempa_mlx.encoder.encoder

if os.getuid() == 0:
    os.setgid({nobody})
    os.setuid({nobody})
run()
"""


def test_a_read_only_folder_is_told_and_nothing_left(space, tmp_path):
    """As a user who may read it, not write into it."""
    folder = tmp_path / "readonly"
    folder.mkdir()
    (folder / "a.txt").write_text("".join(f"{text}\n" for text in SENTENCES))
    for path in (*tmp_path.parents, tmp_path):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    for path in (*space.parents, space):
        if path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    folder.chmod(0o555)
    command = ["embed", "a.txt", "--adapter-path", str(space / "run")]
    ended = subprocess.run(
        [sys.executable, "-c", READ_ONLY.format(nobody=NOBODY), *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HOME": "/nonexistent"},
    )
    folder.chmod(0o755)
    assert ended.returncode == 4, ended.stderr
    assert "error: cannot write a.txt.npy: Permission denied" in ended.stderr
    assert "name a folder that you may write to" in ended.stderr
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
