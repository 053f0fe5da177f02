"""Writing files so that a reader sees the old content or the new, never half of either.

What is being written has a name of its own beside its place, with the machine and the number of
the process that writes it. After a kill the next writer in that folder removes what has no living
owner; of other machines, what is a day old.
"""

import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path

from sempa_mlx.disk import writing
from sempa_mlx.errors import LONGEST_PLACE, Problem, UsageError

_TEMPORARY = re.compile(r"\.sempa-tmp-(?:(h[0-9a-f]{8})-)?([0-9]+)-.+")
_NAMESPACE = Path("/proc/self/ns/pid")  # another one in every container
_ABANDONED = 24 * 3600.0  # seconds after which what another machine was writing is given up


def cache_folder() -> Path:
    """Return the folder beside the Hub's cache for what is kept between runs; HF_HOME moves it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).parent / "sempa-mlx"


def named_path(name: str) -> Path:
    """Return the path that a user wrote, which may begin with `~`; nothing need be there.

    Raises:
        UsageError: there is no such home, no file can have that name, or it may not be looked for.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (RuntimeError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problem = Problem(f"no path that could be looked at: {reason}", name[:LONGEST_PLACE])
        raise UsageError(problem, state="nothing was started") from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it there when the block ends well.

    Raises:
        ResourceError: the disk is full or the folder cannot be written to; `path` is as before.
        RunError: the disk is broken; likewise.
    """
    with replacing_together(path) as (temporary,):
        yield temporary


@contextmanager
def replacing_together(*paths: Path, is_last_seal: bool = False) -> Iterator[list[Path]]:
    """Yield a temporary path beside each of several; all are moved there, or none.

    A kill between two moves leaves new files beside old ones. Where the last one is a seal, without
    which nobody reads the others, it is gone while they are moved, so that this shows.

    Raises:
        ResourceError: the disk is full or a folder cannot be written to; all paths are as before.
        RunError: the disk is broken; likewise.
    """
    temporaries = [path.with_name(f"{_prefix()}{path.name}") for path in paths]
    try:
        with writing(paths[0]):
            for folder in {path.parent for path in paths}:
                folder.mkdir(parents=True, exist_ok=True)
                remove_leftovers(folder)
            yield temporaries
            for temporary in temporaries:
                _flush(temporary)
            _put_in_place(list(zip(temporaries, paths, strict=True)), is_last_seal=is_last_seal)
    finally:
        for temporary in temporaries:
            with suppress(OSError):  # a folder that cannot be written to cannot be cleaned either
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(document: object) -> str:
    """Return JSON over several lines; names of files that are no UTF-8 are escaped."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2)
    return f"{text}\n"


def write_folder_files(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write files that belong together: all take their places, or none.

    Raises:
        ResourceError: a file cannot be written; none was replaced.
        RunError: the disk is broken; likewise.
    """
    with replacing_together(*(folder / name for name in writers)) as temporaries:
        for write, temporary in zip(writers.values(), temporaries, strict=True):
            write(temporary)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, and move it there when the block ends well.

    Raises:
        UsageError: the path is a file, or a folder that is not empty.
        ResourceError: the disk is full or cannot be written to; nothing of the new folder is left.
        RunError: the disk is broken; likewise.
    """
    refuse_filled(folder)
    with writing(folder), staging(folder.parent) as stage:
        inner = stage / folder.name  # of the usual rights; those of `stage` are its owner's
        inner.mkdir()
        yield inner
        for path in inner.rglob("*"):
            _flush(path)
        inner.replace(folder)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Yield an empty folder within `folder`, which is made if need be; it is gone afterwards.

    Raises:
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    stage = Path(tempfile.mkdtemp(prefix=_prefix(), dir=folder))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that are gone were writing in a folder."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            owner = _TEMPORARY.fullmatch(path.name)
            if owner is None or _is_owned(path, owner[1], int(owner[2])):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _is_owned(path: Path, host: str | None, process: int) -> bool:
    """Tell whether whoever writes a temporary file may still be at it."""
    if host in (None, _host()):
        return is_running(process)
    return time.time() - path.stat().st_mtime < _ABANDONED


@cache
def _host() -> str:
    """Return what tells this machine, or container, from others that may share a folder with it."""
    try:
        space = _NAMESPACE.stat().st_ino
    except OSError:  # not on a Mac
        space = 0
    return f"h{blake2b(f'{platform.node()} {space}'.encode(), digest_size=4).hexdigest()}"


def is_temporary(name: str) -> bool:
    """Tell whether a file of this name is one that is being written, or was when a kill came."""
    return _TEMPORARY.fullmatch(name) is not None


def is_running(process: int) -> bool:
    """Tell whether there is a process of that number on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def refuse_read(out: Path | None, *read: str | Path | None) -> None:
    """Refuse to write over a file that is read, itself or as one of a folder; None is neither.

    Raises:
        UsageError: `out` is such a file.
    """
    if out is None or not out.exists():
        return
    for each in read:
        if each is not None and out.resolve().is_relative_to(named_path(str(each)).resolve()):
            problem = Problem("is read, so it is not written", str(out), fix="name another file")
            raise UsageError(problem, state="nothing was written")


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse to overwrite a file unless forced, and to write through a link at all.

    Raises:
        UsageError: the path is taken.
    """
    if path.is_symlink():
        raise UsageError(
            f"{path} is a symbolic link; name the file itself", state="nothing written"
        )
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file", state="nothing written")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; add --force to replace it", state="nothing written")


def refuse_filled(folder: Path) -> None:
    """Refuse to write into a folder that holds something.

    Raises:
        UsageError: the path is a file, or a folder that is not empty.
    """
    if folder.is_symlink() or folder.resolve() == Path.cwd():
        what = "is a symbolic link" if folder.is_symlink() else "is the folder you are in"
        problem = Problem(what, str(folder), fix="name a new folder")
        raise UsageError(problem, state="nothing was written")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists; choose a new folder", state="nothing was written")


def _prefix() -> str:
    return f".sempa-tmp-{_host()}-{os.getpid()}-"


def _flush(path: Path) -> None:
    """Have the content of a file reach the disk."""
    if path.is_file():
        with path.open("rb") as written:
            os.fsync(written.fileno())


def _put_in_place(moves: Sequence[tuple[Path, Path]], *, is_last_seal: bool = False) -> None:
    """Rename files one by one; if one cannot be, those before it get their old content back."""
    olds: list[tuple[Path, Path]] = []
    try:
        if is_last_seal:
            temporary, seal = moves[-1]
            olds.append((_second_name(seal, temporary), seal))
            seal.unlink(missing_ok=True)
        for temporary, path in moves:
            if temporary is not moves[-1][0]:
                olds.append((_second_name(path, temporary), path))
            temporary.replace(path)
    except OSError:
        for old, path in olds:
            with suppress(OSError):
                old.replace(path) if old.exists() else path.unlink(missing_ok=True)
        raise
    finally:
        for old, _ in olds:
            with suppress(OSError):
                old.unlink()


def _second_name(path: Path, temporary: Path) -> Path:
    """Give what is at a path, if anything, another name beside its temporary one; return that."""
    old = temporary.with_name(f"{temporary.name}.old")
    with suppress(FileNotFoundError):
        try:
            old.hardlink_to(path)
        except FileNotFoundError:
            raise
        except OSError:  # a disk without hard links
            shutil.copy2(path, old)
    return old
