"""What a disk refuses: whose fault it is, how much room there is, and what to do about it."""

import errno
import os
import re
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from sempa_mlx.errors import Problem, ResourceError, RunError, SempaError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LOCKED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_RUST_ERROR = re.compile(r"\(os error ([0-9]+)\)")  # safetensors and tokenizers
_MLX_ERROR = re.compile(r"\[(write|save_safetensors)\] ")


class writing(AbstractContextManager[None]):
    """A block that writes a path; what the disk refuses becomes an error that says so.

    Raises:
        ResourceError: the disk is full, or may not be written to there.
        RunError: the disk is broken.
    """

    def __init__(self, path: Path) -> None:
        """Keep the path that errors name."""
        self._path = path

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Raise another error in the place of one that came from the disk."""
        refusal = disk_error(self._path, error) if isinstance(error, Exception) else None
        if refusal is not None:
            raise refusal from error


def disk_error(path: Path, error: Exception) -> SempaError | None:
    """Return what to tell about a file that could not be written; None if that is not the reason.

    Args:
        path: of the file or folder that was to be written.
        error: what was raised meanwhile.
    """
    refusal = refused(error)
    if refusal is None:
        return None
    reason = refusal.strerror or str(refusal)
    problem = Problem(f"cannot write {path}: {reason}", evidence=room(path), fix=_fix(refusal))
    return kind_of(refusal)(problem, state="nothing was written")


def full_disk(error: Exception) -> SempaError | None:
    """Return what to tell if a disk was full or broken where nobody looked for it."""
    refusal = refused(error)
    if refusal is None or refusal.errno not in FULL | {errno.EIO}:
        return None
    return disk_error(Path(refusal.filename or tempfile.gettempdir()), error)


def refused(error: Exception) -> OSError | None:
    """Return the disk's refusal in an error, which not every library raises as an OSError."""
    if isinstance(error, SempaError | BrokenPipeError):
        return None
    if isinstance(error, OSError):
        return error
    if number := _RUST_ERROR.search(str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return OSError(str(error)) if _MLX_ERROR.match(str(error)) else None


def kind_of(refusal: OSError) -> type[SempaError]:
    """Return the class of a refusal: a disk that fails is no matter of its size."""
    return RunError if refusal.errno == errno.EIO else ResourceError


def room(path: Path) -> str:
    """Say how much is free on the disk that a path is on, or would be; empty if unknown."""
    for parent in path.absolute().parents:
        try:
            return f"{shutil.disk_usage(parent).free / 1e9:.2f} GB free on this disk"
        except OSError:
            continue
    return ""


def _fix(refusal: OSError) -> str:
    if refusal.errno in FULL:
        return "make room, or name a place on another disk"
    if refusal.errno in _LOCKED:
        return "name a folder that you may write to"
    return "check the disk" if refusal.errno == errno.EIO else ""
