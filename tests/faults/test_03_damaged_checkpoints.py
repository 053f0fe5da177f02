"""Fault 3: a checkpoint that is cut short, lacks its manifest or has a flipped byte.

Any byte, cut and missing file: tests/training/test_checkpoint.py. No checkpoint at all:
tests/test_resume.py.
"""

import shutil

import pytest

from tests.command import done, files_below, refused


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = [
    ("adapter.safetensors", cut, "bytes; "),
    ("optimizer.safetensors", flip, "has changed since it was written"),
    ("state.json", flip, "has changed since it was written"),
    ("manifest.json", lambda path: path.unlink(), "missing"),
]


@pytest.fixture
def folder(space, tmp_path):
    return shutil.copytree(space / "run", tmp_path / "run")


@pytest.mark.parametrize(("file", "damage", "reason"), DAMAGES)
def test_the_one_before_is_used_and_the_reason_told(space, folder, file, damage, reason):
    damage(folder / "checkpoints" / "step-000003" / file)
    outcome = done("train", "--resume", "--adapter-path", folder)
    (warning,) = [line for line in outcome.err.splitlines() if "passed over" in line]
    assert f"step-000003/{file}: " in warning
    assert reason in warning
    assert "going on after step 2" in outcome.err
    for name in ("adapters.safetensors", "encoder.json"):
        assert (folder / name).read_bytes() == (space / "run" / name).read_bytes()


def test_where_none_is_sound_nothing_is_started(folder):
    for step, (file, damage, _) in zip((2, 3), DAMAGES[1:3], strict=True):
        damage(folder / "checkpoints" / f"step-{step:06d}" / file)
    before = files_below(folder)
    outcome = refused(1, "train", "--resume", "--adapter-path", folder)
    assert "no checkpoint to resume from" in outcome.errors[0]
    assert len(outcome.errors) == 3
    assert "nothing was started" in outcome.err
    assert files_below(folder) == before
