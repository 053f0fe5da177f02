"""Every error a user can meet: one tree, one exit code a branch.

    SempaError        1   the run failed (model, adapter, divergence)
    ├── ModelError    1
    ├── RunError      1
    ├── UsageError    2   wrong command line
    │   └── ConfigError 2 wrong setting
    ├── DataError     3   wrong data
    └── ResourceError 4   not enough memory or disk

An error carries *all* faults that were found, each with its place, and the state the user is in.
"""

import os
import re
import tempfile
import traceback
from collections.abc import Iterable
from dataclasses import dataclass

from sempa_mlx import __version__

LONGEST_PLACE = 255  # characters of a path that messages show
_HUB_TOKEN = re.compile(r"hf_\w{6,}")
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "SEMPA_API_KEY")  # variables


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: where it is, what it is, what shows it, how to mend it."""

    what: str
    place: str = ""
    evidence: str = ""
    fix: str = ""

    def __str__(self) -> str:
        """Return `place: what`, the greppable first line of the fault."""
        return f"{self.place}: {self.what}" if self.place else self.what


class SempaError(Exception):
    """Base of all errors that are meant for the user."""

    exit_code = 1

    def __init__(self, problems: str | Problem | Iterable[Problem], *, state: str = "") -> None:
        """Keep every problem, and `state`: what was started, kept or written."""
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.state = state
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ModelError(SempaError):
    """A model or adapter is missing, unreadable or does not fit."""


class RunError(SempaError):
    """A run could not go on: divergence, a failed self-check."""


class UsageError(SempaError):
    """The command line asks for something that cannot be done."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting is unknown, mistyped or out of range."""


class DataError(SempaError):
    """A data file is missing, empty or malformed."""

    exit_code = 3


class ResourceError(SempaError):
    """Memory or disk does not suffice."""

    exit_code = 4


def without_secrets(text: str) -> str:
    """Return text of another program's error without the keys and tokens that are known here."""
    for name in _SECRETS:
        if secret := os.environ.get(name, "").strip():
            text = text.replace(secret, f"${name}")
    return _HUB_TOKEN.sub("hf_…", text)


def unexpected(error: Exception) -> SempaError:
    """Save the traceback of a bug that is being handled; return an error that says where it is."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="sempa-mlx-", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            log.write(f"sempa-mlx {__version__}\n{without_secrets(traceback.format_exc())}")
        where = f"the traceback is in {log.name}; --debug shows it here"
    except (OSError, ValueError):  # a disk that is full, text that is no UTF-8
        where = "run it again with --debug for the traceback"
    what = without_secrets(f"{type(error).__name__}: {error}")
    return SempaError(what, state=f"this is a bug; {where}")
