"""Writing files so that a reader sees the old content or the new, never half of either."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sempa_mlx.errors import ResourceError, UsageError


def cache_folder() -> Path:
    """Return the folder beside the Hub's cache for what is kept between runs; HF_HOME moves it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).parent / "sempa-mlx"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it there when the block ends well.

    Raises:
        ResourceError: the disk is full or the folder cannot be written to; `path` is as before.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # a folder that cannot be written to cannot be cleaned either
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_folder_files(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write files that belong together: all are complete before the first takes its place.

    Raises:
        ResourceError: a file cannot be written; none was replaced.
    """
    stage = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder))
        for name, write in writers.items():
            write(stage / name)
        for name in writers:
            (stage / name).replace(folder / name)
    except (OSError, RuntimeError) as error:
        raise ResourceError(f"cannot write into {folder}: {error}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, and move it there when the block ends well.

    Raises:
        UsageError: the path is a file, or a folder that is not empty.
        ResourceError: the disk is full or cannot be written to; nothing of the new folder is left.
    """
    refuse_filled(folder)
    staging = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
        stage = staging / folder.name  # of the usual rights; those of `staging` are its owner's
        stage.mkdir()
        yield stage
        stage.replace(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResourceError(f"cannot write {folder}: {reason}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists; choose a new folder", state="nothing was written")
