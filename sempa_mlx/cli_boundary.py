"""The boundary between the program and its user: nothing gets through raw."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from sempa_mlx.commands.group import ReaderGoneError, help_of_group, usage_error
from sempa_mlx.console import Console
from sempa_mlx.disk import full_disk
from sempa_mlx.errors import SempaError, unexpected
from sempa_mlx.memory import out_of_memory


def answer(run: Callable[[], object], console: Console, *, debug: bool) -> int:
    """Run a command line to its end and return its exit code; print what went wrong.

    A reader of ours that has gone, such as `head`, is no error. `debug` lets errors pass.
    """
    try:
        return _code(run, console, debug=debug)
    except (ReaderGoneError, BrokenPipeError):
        _forget(sys.stdout)
        return 0
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        _forget(sys.stdout)  # of the help, which rich prints
        return 0


def _code(run: Callable[[], object], console: Console, *, debug: bool) -> int:
    try:
        run()
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
    return 0


def _tell(console: Console, error: Exception) -> int:
    told = error if isinstance(error, SempaError) else full_disk(error) or out_of_memory(error)
    told = told or unexpected(error)
    with suppress(BrokenPipeError):
        console.error(told)
    return told.exit_code


def _forget(stream: TextIO) -> None:
    """Let what a closed pipe did not take vanish, rather than fail once more at the end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
