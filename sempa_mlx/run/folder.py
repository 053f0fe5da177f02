"""The run folder: what lies where, and who may write into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sempa_mlx.config import SempaConfig
from sempa_mlx.errors import Problem, UsageError
from sempa_mlx.files import is_temporary, named_path
from sempa_mlx.run.lock import LOCK_FILE, locked, refuse_in_use
from sempa_mlx.world import World

METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
CONFIG_COPY = "config.yaml"
CHECKPOINTS = "checkpoints"


def is_run(folder: Path) -> bool:
    """Tell whether a folder holds a run, finished or not."""
    return (folder / METRICS_FILE).is_file() and (folder / CONFIG_COPY).is_file()


@contextmanager
def claimed(config: SempaConfig, *, force: bool = False, resume: bool = False) -> Iterator[str]:
    """Check the folder of a run, and hold it for this process and those that share the work.

    Only the first of them writes, so only that one checks and holds.

    Yields:
        A remark for the user, such as that an earlier run was killed; mostly empty.

    Raises:
        UsageError: the folder is taken, or there is no run to resume in it.
        RunError: another process trains into it.
        ResourceError: it cannot be written to.
    """
    if World.join().rank:
        yield ""
        return
    folder = Path(config.output.path)
    check_place(folder, config.model.name)
    check_output(folder, force=force, resume=resume)
    with locked(folder) as remark:
        yield remark


def check_place(folder: Path, model: str) -> None:
    """Refuse a run folder within the folder of the model.

    Raises:
        UsageError: it is there.
    """
    base = named_path(model)
    if base.is_dir() and folder.resolve().is_relative_to(base.resolve()):
        problem = Problem(
            f"{folder} lies in the model's own folder", fix="choose another with --adapter-path"
        )
        raise UsageError(problem, state="nothing was started")


def check_run(folder: Path) -> None:
    """Refuse a folder without a run that could be resumed.

    Raises:
        UsageError: it holds none.
    """
    if not is_run(folder):
        fix = "name the folder of the run with --adapter-path"
        problem = Problem(f"{folder} holds no run to resume", fix=fix)
        raise UsageError(problem, state="nothing was started")


def check_output(folder: Path, *, force: bool = False, resume: bool = False) -> None:
    """Refuse a folder that holds something else than an earlier run, or a run without `force`.

    Raises:
        UsageError: the folder is taken, or there is no run to resume in it.
        RunError: another process trains into it.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is not a folder", state="nothing was started")
    refuse_in_use(folder)
    if resume and force:
        what = "a run is resumed or replaced, not both"
        raise UsageError(
            Problem(what, fix="keep one of --resume and --force"), state="nothing was started"
        )
    if resume:
        check_run(folder)
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not {name for name in names if not is_temporary(name)} - {LOCK_FILE}:
        return
    if not is_run(folder) and LOCK_FILE not in names:  # a lock is left where a run was killed
        raise UsageError(
            Problem(f"{folder} holds other files", fix="choose another with --adapter-path"),
            state="nothing was started",
        )
    if not force:
        raise UsageError(
            Problem(
                f"{folder} holds an earlier run",
                fix="add --resume to continue it, --force to replace it, or choose another with "
                "--adapter-path",
            ),
            state="nothing was started",
        )
