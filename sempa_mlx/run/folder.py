"""The run folder: what lies where, and who may write into it."""

from pathlib import Path

from sempa_mlx.errors import Problem, UsageError

METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
CONFIG_COPY = "config.yaml"
CHECKPOINTS = "checkpoints"


def is_run(folder: Path) -> bool:
    """Tell whether a folder holds a run, finished or not."""
    return (folder / METRICS_FILE).is_file() and (folder / CONFIG_COPY).is_file()


def check_output(folder: Path, *, force: bool = False, resume: bool = False) -> None:
    """Refuse a folder that holds something else than an earlier run, or a run without `force`.

    Raises:
        UsageError: the folder is taken, or there is no run to resume in it.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder} is not a folder", state="nothing was started")
    if resume:
        if not is_run(folder):
            fix = "name the folder of the run with --adapter-path"
            problem = Problem(f"{folder} holds no run to resume", fix=fix)
            raise UsageError(problem, state="nothing was started")
        return
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not is_run(folder):
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
