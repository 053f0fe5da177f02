"""Adapters that come with the package: a name stands for a run folder."""

from pathlib import Path

_FOLDER = Path(__file__).with_name("adapters")
RELEASED = {"smollm2-135m": "smollm2-135m-nli"}  # alias of a base: the adapter trained on it


def find_run(named: Path) -> Path:
    """Return the folder of a packaged adapter if that is what is named, else the path as it is.

    A folder of that name in the working directory goes first.
    """
    is_released = str(named) in RELEASED.values() and not named.exists()
    return _FOLDER / named if is_released else named


def shown(run: Path) -> str:
    """Return what people call a run folder: a packaged adapter's name, else the path."""
    return run.name if run.parent == _FOLDER else str(run)
