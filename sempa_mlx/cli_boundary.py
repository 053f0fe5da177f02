"""The boundary between the program and its user: nothing gets through raw."""

import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from sempa_mlx.commands.group import ReaderGoneError, help_of_group, usage_error
from sempa_mlx.console import Console
from sempa_mlx.disk import full_disk
from sempa_mlx.errors import LONGEST_PLACE, Problem, SempaError, UsageError, unexpected
from sempa_mlx.memory import out_of_memory

UNREACHABLE = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR}


def answer(run: Callable[[], int], console: Console, *, debug: bool) -> int:
    """Run a command line to its end and return its exit code; print what went wrong.

    A reader of ours that has gone, such as `head`, is no error. `debug` lets errors pass.
    """
    _open_streams()
    try:
        return _code(run, console, debug=debug)
    except (ReaderGoneError, BrokenPipeError):
        return 0
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # of the help, which rich prints
            return 0
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        _close(sys.stdout)
        _close(sys.stderr)


def _code(run: Callable[[], int], console: Console, *, debug: bool) -> int:
    try:
        code = run()
        sys.stdout.flush()  # a disk that is full shows itself here
    except ReaderGoneError:
        raise
    except Exception as error:
        if console.mode != "json" and (text := help_of_group(error)) is not None:
            if text:
                console.result(text)
            return 2
        told = usage_error(error)
        if debug and told is None:
            raise
        return _tell(console, told or error)
    return code


def _tell(console: Console, error: Exception) -> int:
    if isinstance(error, BrokenPipeError):
        raise error
    told = error if isinstance(error, SempaError) else full_disk(error) or out_of_memory(error)
    told = told or _unreachable(error) or unexpected(error)
    with suppress(BrokenPipeError):
        console.error(told)
    return told.exit_code


def _unreachable(error: Exception) -> SempaError | None:
    """Return the error of a path that no file can have, or that may not be looked at."""
    if not isinstance(error, OSError) or error.errno not in UNREACHABLE or not error.filename:
        return None
    return UsageError(Problem(str(error.strerror), str(error.filename)[:LONGEST_PLACE]))


def _open_streams() -> None:
    """Have results be UTF-8 in every locale, as files are; what was closed takes anything."""
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _close(stream: TextIO) -> None:
    """Let what cannot be written any more vanish, rather than fail once more at the end."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
