"""Folders `step-000400/` side by side: staged, renamed into place, found by name, pruned.

What is in them is none of its business. A folder under such a name was complete when it got it,
whatever is killed and whenever; one that was being replaced is `step-000400-old`. One process
writes at a time.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sempa_mlx.disk import FULL, kind_of, room
from sempa_mlx.errors import Problem, SempaError, UsageError
from sempa_mlx.files import is_running

INTACT = "earlier checkpoints are intact"

_STEP_NAME = re.compile(r"step-([0-9]{6,})(-old)?")
_STAGE_NAME = re.compile(r"\.tmp-step-[0-9]+(?:-old)?-([0-9]+)")


def step_folder(folder: Path, step: int) -> Path:
    """Return where the folder of a step is, or would be."""
    return folder / f"step-{step:06d}"


def step_of(path: Path) -> int | None:
    """Read the step from a folder's name; None if it is no step folder."""
    match = _STEP_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def newest_first(folder: Path) -> list[Path]:
    """List the step folders; one that was being replaced comes after its replacement.

    Raises:
        OSError: the folder cannot be read.
    """
    paths = [path for path in folder.iterdir() if step_of(path) is not None]
    order = {path: (step_of(path), not path.name.endswith("-old")) for path in paths}
    return sorted(paths, key=order.__getitem__, reverse=True)


def refuse_link(folder: Path) -> None:
    """Refuse a folder that is a symbolic link.

    Raises:
        UsageError: it is one.
    """
    if folder.is_symlink():
        raise UsageError(f"{folder} is a symbolic link; name the folder itself")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`, and move it there when the block ends well.

    The block flushes its own files. A folder that is there already is replaced.

    Raises:
        ResourceError: the disk is full or cannot be written to; nothing of the new folder is left.
        RunError: the disk is broken; likewise.
        UsageError: the folder that both are in is a symbolic link.
    """
    stage = _stage_of(target)
    try:
        refuse_link(target.parent)
        if not target.parent.exists():
            target.parent.mkdir(parents=True)
            _sync(target.parent.parent)
        remove_leftovers(target.parent)
        stage.mkdir()
        yield stage
        _sync(stage)
        _put_in_place(stage, target)
    except OSError as error:
        raise _disk_error(target, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def prune(folder: Path, step: int, keep: int) -> None:
    """Keep the newest `keep` of the steps up to `step`; what cannot be removed stays."""
    with suppress(OSError):
        steps = {path: step_of(path) or 0 for path in newest_first(folder)}
        kept = sorted({step, *(found for found in steps.values() if found < step)})[-keep:]
        for path, found in steps.items():
            if found < kept[0]:
                _remove(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted saves have left, unless their process may still be at it."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            owner = _STAGE_NAME.fullmatch(path.name)
            if owner and (int(owner[1]) == os.getpid() or not is_running(int(owner[1]))):
                _delete(path)


def _put_in_place(stage: Path, target: Path) -> None:
    """Rename the staged folder; at every moment the old one or the new can be found."""
    aside = target.with_name(f"{target.name}-old")
    if os.path.lexists(target):
        _remove(aside)
        target.rename(aside)
    try:
        stage.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    _sync(target.parent)
    _remove(aside)


def _stage_of(target: Path) -> Path:
    return target.with_name(f".tmp-{target.name}-{os.getpid()}")


def _sync(folder: Path) -> None:
    """Have the names in a folder, not only the files' contents, reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot
            raise
    finally:
        os.close(descriptor)


def _disk_error(target: Path, error: OSError) -> SempaError:
    return kind_of(error)(
        Problem(
            f"cannot write the checkpoint ({error.strerror or error})",
            place=str(target),
            evidence=room(target),
            fix="make room, then resume"
            if error.errno in FULL
            else "check the disk and its permissions",
        ),
        state=INTACT,
    )


def _remove(path: Path) -> None:
    """Remove a step folder if it can be done; a kill meanwhile leaves no half of one."""
    with suppress(OSError):
        if os.path.lexists(path):
            _delete(path.rename(_stage_of(path)))


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()
