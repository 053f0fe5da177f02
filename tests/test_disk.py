"""What a disk refuses, told to a person."""

import errno
import os
from types import SimpleNamespace

import pytest

from sempa_mlx import disk
from sempa_mlx.disk import disk_error, full_disk, refused, room, writing
from sempa_mlx.errors import DataError, ResourceError, RunError


def refusal(number):
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("number", "kind", "fix"),
    [
        (errno.ENOSPC, ResourceError, "make room"),
        (errno.EACCES, ResourceError, "a folder that you may write to"),
        (errno.EROFS, ResourceError, "a folder that you may write to"),
        (errno.EIO, RunError, "check the disk"),
        (errno.ENOTDIR, ResourceError, ""),
    ],
)
def test_each_refusal_has_its_kind_and_its_fix(tmp_path, number, kind, fix):
    error = disk_error(tmp_path / "x.npy", refusal(number))
    (problem,) = error.problems
    assert type(error) is kind
    assert problem.what == f"cannot write {tmp_path / 'x.npy'}: {os.strerror(number)}"
    assert "GB free" in problem.evidence
    assert fix in problem.fix
    assert bool(problem.fix) == bool(fix)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (RuntimeError("IO: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("[save_safetensors] Failed to open file"), None),
        (DataError("not of the disk"), "none"),
        (BrokenPipeError(), "none"),
        (RuntimeError("something else"), "none"),
    ],
)
def test_a_refusal_is_found_in_what_other_libraries_raise(error, found):
    refusal = refused(error)
    assert (refusal.errno if refusal else "none") == found


def test_only_a_full_or_broken_disk_is_told_where_nobody_looked(tmp_path):
    assert isinstance(full_disk(refusal(errno.ENOSPC)), ResourceError)
    assert isinstance(full_disk(refusal(errno.EIO)), RunError)
    assert full_disk(refusal(errno.ENOENT)) is None
    assert full_disk(ValueError("no disk")) is None


def test_room_is_that_of_the_nearest_folder_that_is_there(tmp_path, monkeypatch):
    def usage(path):
        if path != tmp_path:
            raise FileNotFoundError
        return SimpleNamespace(free=2.5e9)

    monkeypatch.setattr(disk.shutil, "disk_usage", usage)
    assert room(tmp_path / "not" / "yet" / "x.npy") == "2.50 GB free on this disk"
    assert room(tmp_path.parent / "elsewhere") == ""


def test_what_is_raised_in_a_block_is_told_unless_it_is_something_else(tmp_path):
    with pytest.raises(ResourceError, match="cannot write"), writing(tmp_path / "x"):
        raise refusal(errno.ENOSPC)
    with pytest.raises(ValueError, match="a bug"), writing(tmp_path / "x"):
        raise ValueError("a bug")
    with writing(tmp_path / "x"):
        pass
