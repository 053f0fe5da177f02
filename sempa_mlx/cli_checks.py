"""What an option alone can have wrong with it: told before anything is read or loaded."""

import math
import os
from pathlib import Path

from sempa_mlx.errors import Problem, UsageError

NOTHING = "nothing was started"


def find_runs(named: Path | list[Path] | None) -> Path | list[Path] | None:
    """Let each run folder be a packaged adapter's name."""
    from sempa_mlx.model.released import find_run

    if named is None:
        return None
    return find_run(named) if isinstance(named, Path) else [find_run(each) for each in named]


def finite(number: float | list[float] | None) -> float | list[float] | None:
    """Refuse a number that is NaN or infinite.

    Raises:
        UsageError: it is.
    """
    numbers = number if isinstance(number, list) else [number]
    for each in numbers:
        if each is not None and not math.isfinite(each):
            raise UsageError(Problem(f"--adapter-scale {each} is no number"), state=NOTHING)
    return number


def place_to_write(path: Path | None) -> Path | None:
    """Refuse a file that could not be written after all the work.

    Raises:
        UsageError: it is a folder or a device, or cannot be made where it is to be.
    """
    if path is None:
        return None
    # Not `Path`'s own, which raise in a folder that may not be searched.
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
        what = "is a folder" if os.path.isdir(path) else "is no file"  # noqa: PTH112
        raise UsageError(Problem(what, str(path), fix="name a file"), state=NOTHING)
    above = next(each for each in path.absolute().parents if os.path.exists(each))  # noqa: PTH110
    is_folder = os.path.isdir(above)  # noqa: PTH112
    if not is_folder or not os.access(above, os.W_OK | os.X_OK):
        what = "cannot be written to" if is_folder else "is not a folder"
        raise UsageError(Problem(what, str(above), fix="name another place"), state=NOTHING)
    return path


def refuse_unused(*given: tuple[str, object, object, str]) -> None:
    """Refuse options that would change nothing.

    Args:
        *given: for each option its name, its value (None: not given), whether what it is about is
            there, and what that is called.

    Raises:
        UsageError: some are; all of them are told.
    """
    problems = [
        Problem(f"{option} does nothing without {need}", fix=f"leave out {option}")
        for option, value, is_used, need in given
        if value not in (None, []) and not is_used
    ]
    if problems:
        raise UsageError(problems, state=NOTHING)
