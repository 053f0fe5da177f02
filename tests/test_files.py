import errno
import os
import time
from pathlib import Path

import pytest

from sempa_mlx import files
from sempa_mlx.errors import ResourceError, UsageError
from sempa_mlx.files import (
    named_path,
    new_folder,
    refuse_existing,
    replacing,
    write_folder_files,
    write_text,
)
from tests.processes import ended_process


def write_and_raise(path, text, error):
    with replacing(path) as temporary:
        temporary.write_text(text)
        raise error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_replacing_moves_the_new_content_there(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_the_old_content_stays_when_the_block_raises(tmp_path, error):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_and_raise(path, "half of the n", error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out.txt"]


def test_nothing_is_left_when_there_was_nothing(tmp_path):
    with pytest.raises(ValueError, match="x"):
        write_and_raise(tmp_path / "out.txt", "half", ValueError("x"))
    assert names(tmp_path) == []


def test_folders_on_the_way_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "out.txt", "שלום\n")
    assert (tmp_path / "a" / "b" / "out.txt").read_bytes() == "שלום\n".encode()


def test_a_full_disk_is_a_resource_error(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ResourceError, match=r"cannot write .*out\.txt: No space left on device"):
        write_and_raise(path, "half", error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out.txt"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(ResourceError, match="cannot write"), replacing(tmp_path / "out.txt"):
        pass
    assert names(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_a_resource_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="cannot write"):
        write_text(tmp_path / "file" / "out.txt", "new")
    with pytest.raises(ResourceError, match="cannot write"):
        write_text(tmp_path / "file" / "deeper" / "out.txt", "new")
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_in_the_place_of_the_file_is_a_resource_error(tmp_path):
    (tmp_path / "out.txt").mkdir()
    with pytest.raises(ResourceError, match="cannot write"):
        write_text(tmp_path / "out.txt", "new")
    assert names(tmp_path) == ["out.txt"]


# Files that belong together


def write_of(text):
    return lambda path: path.write_text(text)


def test_all_files_of_a_folder_are_written(tmp_path):
    folder = tmp_path / "run"
    write_folder_files(folder, {"a.txt": write_of("1"), "b.txt": write_of("2")})
    assert names(folder) == ["a.txt", "b.txt"]
    write_folder_files(folder, {"a.txt": write_of("3")})
    assert (folder / "a.txt").read_text() == "3"
    assert (folder / "b.txt").read_text() == "2"


@pytest.mark.parametrize(
    "error", [OSError(28, "full"), RuntimeError("[write] Unable to write 9 bytes to file.")]
)
def test_no_file_is_replaced_unless_all_are_complete(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")

    def fail(path):
        path.write_text("half")
        raise error

    with pytest.raises(ResourceError, match="cannot write"):
        write_folder_files(tmp_path, {"a.txt": write_of("new"), "b.txt": fail})
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_programming_fault_is_not_disguised_but_cleaned_up(tmp_path):
    def fail(_path):
        raise TypeError("a fault")

    with pytest.raises(TypeError, match="a fault"):
        write_folder_files(tmp_path, {"a.txt": write_of("new"), "b.txt": fail})
    assert names(tmp_path) == []


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(ResourceError, match="cannot write"):
        write_folder_files(tmp_path / "run", {"a.txt": write_of("new")})
    assert (tmp_path / "run").read_text() == "x"


# Refusals


def test_a_free_path_is_not_refused(tmp_path):
    refuse_existing(tmp_path / "free", force=False)
    refuse_existing(tmp_path / "free", force=True)


def test_a_taken_path_is_refused_unless_forced(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(UsageError, match="add --force") as error:
        refuse_existing(tmp_path / "taken", force=False)
    assert error.value.state == "nothing written"
    refuse_existing(tmp_path / "taken", force=True)


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_in_the_place_of_a_file_is_refused_even_when_forced(tmp_path, force):
    with pytest.raises(UsageError, match="is a folder; name a file"):
        refuse_existing(tmp_path, force=force)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_a_link_is_refused_even_when_forced(tmp_path, target, force):
    (tmp_path / "there").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(UsageError, match="symbolic link"):
        refuse_existing(tmp_path / "link", force=force)


# New folders


def make_and_raise(folder, error):
    with new_folder(folder) as stage:
        (stage / "file").write_text("half")
        raise error


def test_a_new_folder_appears_whole(tmp_path):
    folder = tmp_path / "a" / "out"
    with new_folder(folder) as stage:
        (stage / "inner").mkdir()
        (stage / "inner" / "file").write_text("new")
        assert not folder.exists()
    assert (folder / "inner" / "file").read_text() == "new"
    assert names(tmp_path / "a") == ["out"]
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_new_folder_may_take_the_place_of_an_empty_one(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as stage:
        (stage / "file").write_text("new")
    assert names(tmp_path / "out") == ["file"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_no_half_of_a_new_folder_is_left(tmp_path, error):
    with pytest.raises(type(error)):
        make_and_raise(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_a_new_folder_on_a_full_disk_is_a_resource_error(tmp_path):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ResourceError, match=r"cannot write .*out: No space left on device"):
        make_and_raise(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_a_new_folder_is_not_made_over_another(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("precious")
    with pytest.raises(UsageError, match="choose a new folder"):
        make_and_raise(tmp_path / "out", ValueError("x"))
    assert (tmp_path / "out" / "file").read_text() == "precious"
    assert names(tmp_path) == ["out"]


def test_what_processes_that_are_gone_were_writing_is_removed(tmp_path):
    processes = (ended_process(), os.getpid())
    ended, running = (f".sempa-tmp-{process}-a.txt" for process in processes)
    for name in (ended, running, "a.txt-sempa-tmp"):
        (tmp_path / name).touch()
    (tmp_path / f"{ended}-folder" / "within").mkdir(parents=True)
    write_text(tmp_path / "new.txt", "new")
    assert names(tmp_path) == [running, "a.txt-sempa-tmp", "new.txt"]


def test_a_process_of_somebody_else_is_running(monkeypatch):
    def kill(_process, _signal):
        raise PermissionError

    monkeypatch.setattr(files.os, "kill", kill)
    assert files.is_running(1)


def test_on_a_disk_without_hard_links_the_old_content_is_copied(tmp_path, monkeypatch):
    def hardlink_to(_self, _target):
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(Path, "hardlink_to", hardlink_to)
    (tmp_path / "a").write_text("old")
    old = files._second_name(tmp_path / "a", tmp_path / ".tmp-a")
    assert old.read_text() == "old"
    (tmp_path / "a").write_text("new")
    assert old.read_text() == "old"


def test_what_another_machine_writes_is_left_alone_for_a_day(tmp_path):
    ours = files._prefix().split("-")[2]
    other = "h" + "".join("f" if digit == "0" else "0" for digit in ours[1:])
    ended = 2**22 + 1  # no such process: beyond the kernel's largest
    paths = [tmp_path / f".sempa-tmp-{host}-{ended}-a.txt" for host in (ours, other)]
    for path in paths:
        path.write_text("half")
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == [paths[1].name]
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(paths[1], (long_ago, long_ago))
    files.remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_a_machine_without_namespaces_is_told_by_its_name(tmp_path, monkeypatch):
    found = files._host.__wrapped__()
    monkeypatch.setattr(files, "_NAMESPACE", tmp_path / "nowhere")
    assert files._host.__wrapped__() != found
    assert len(files._host.__wrapped__()) == len(found) == 9


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_path("~/rows.jsonl") == tmp_path / "rows.jsonl"
    assert named_path("rows.jsonl") == Path("rows.jsonl")


@pytest.mark.parametrize("name", ["~nosuchuser/x", "x" * 300])
def test_what_can_be_no_path_is_told(name):
    with pytest.raises(UsageError, match="no path that could be looked at"):
        named_path(name)
