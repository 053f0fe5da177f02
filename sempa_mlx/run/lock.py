"""One training at a time in a run folder: a lock file that says whose it is.

The system frees the lock when its process ends, however it ends; the file that stays behind after a
kill only tells who was there. Reading a run needs no lock: what it writes takes its place whole.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sempa_mlx.disk import writing
from sempa_mlx.errors import Problem, RunError

LOCK_FILE = "run.lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def refuse_in_use(folder: Path) -> None:
    """Refuse a folder that another process trains into; of a free one nothing is touched.

    Raises:
        RunError: it is in use.
    """
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # none there, or none of ours
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _in_use(_read(descriptor), folder) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[str]:
    """Hold a run folder, which is made if need be; one that stays empty goes again.

    Yields:
        A remark for the user, such as that an earlier run was killed; mostly empty.

    Raises:
        RunError: another process trains into it.
        ResourceError: the folder cannot be written to.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    path = folder / LOCK_FILE
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, remark = _take(path)
        try:
            yield remark
        finally:
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)
    finally:
        for each in made:
            with suppress(OSError):  # it holds something
                each.rmdir()


def _take(path: Path) -> tuple[int, str]:
    """Lock the file at a path and write our name into it; return it open, and a remark."""
    while True:
        with ExitStack() as stack:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            stack.callback(os.close, descriptor)
            remark = _lock(descriptor, path.parent)
            if _is_at(descriptor, path):  # else its owner took it away meanwhile
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, _name_of_ours(), 0)
                stack.pop_all()  # it stays open
                return descriptor, remark


def _lock(descriptor: int, folder: Path) -> str:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _in_use(_read(descriptor), folder) from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return f"this disk knows no locks: see that no other training writes into {folder}"
        raise
    owner = _read(descriptor)
    return (
        f"the run in {folder} was cut off: {owner} is gone; its lock is ours now" if owner else ""
    )


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _name_of_ours() -> bytes:
    ours = {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    return json.dumps(ours).encode()


def _read(descriptor: int) -> str:
    """Say whose lock it is, since when; empty if the file does not say."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        age = _age(time.time() - float(found["since"]))
        host = "" if found["host"] == socket.gethostname() else f" on {found['host']}"
        return f"process {int(found['process'])}{host}, begun {age} ago"
    except (ValueError, TypeError, KeyError):
        return ""


def _age(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"


def _in_use(owner: str, folder: Path) -> RunError:
    problem = Problem(
        f"another training writes into {folder}",
        evidence=owner,
        fix="wait for it, stop it, or choose another folder with --adapter-path",
    )
    return RunError(problem, state="nothing was started")
