"""Experiment trackers beside metrics.jsonl: used where installed, never required."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from sempa_mlx.errors import ConfigError, Problem

PROJECT = "sempa-mlx"
# TensorBoard's own package cannot write without TensorFlow or torch; tensorboardX can.
PACKAGES = {"trackio": "trackio", "wandb": "wandb", "tensorboard": "tensorboardX"}


class Tracker(Protocol):
    """Takes the numbers of a step."""

    def __call__(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log metrics, under the names of metrics.jsonl."""


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        ConfigError: with the command that installs it.
    """
    if name is not None and find_spec(PACKAGES[name]) is None:
        problem = Problem(
            f"output.report_to: {name} is not installed", fix=f"pip install {PACKAGES[name]}"
        )
        raise ConfigError(problem, state="nothing was started")


@contextmanager
def tracking(name: str | None, folder: Path, settings: dict[str, Any]) -> Iterator[Tracker]:
    """Yield a tracker for one run; it is finished when the block ends, however it ends.

    Args:
        name: of the tracker; None tracks nothing.
        folder: of the run; its name is the run's, and local files go into it.
        settings: of the run, as plain data.
    """
    if name is None:
        yield lambda _metrics, _step: None
    elif name == "tensorboard":
        writer = import_module(PACKAGES[name]).SummaryWriter(str(folder / "tensorboard"))

        def add(metrics: Mapping[str, Any], step: int) -> None:
            for key, value in metrics.items():
                writer.add_scalar(key, value, step)

        try:
            yield add
        finally:
            writer.close()
    else:
        module = import_module(PACKAGES[name])
        module.init(project=PROJECT, name=folder.name, config=settings)
        try:
            yield lambda metrics, step: module.log(dict(metrics), step=step)
        finally:
            module.finish()


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a line of metrics.jsonl: its numbers, without the step."""
    return {
        name: float(value)
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float)
    }
