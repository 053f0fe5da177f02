"""Trackers are stood in for by small modules that write down what they are told."""

import importlib.machinery
import sys
import types
from pathlib import Path

import pytest

from sempa_mlx.errors import ConfigError
from sempa_mlx.run.trackers import check_tracker, numbers, tracking


def stand_in(monkeypatch, name, **functions):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_metrics_reach_the_tracker_and_the_run_is_finished(name, monkeypatch):
    calls = []
    stand_in(
        monkeypatch,
        name,
        init=lambda **options: calls.append(options),
        log=lambda metrics, step: calls.append((metrics, step)),
        finish=lambda: calls.append("finished"),
    )
    check_tracker(name)

    def interrupted():
        with tracking(name, Path("a/run"), {"seed": 1}) as track:
            track({"loss": 0.5}, 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert calls == [
        {"project": "sempa-mlx", "name": "run", "config": {"seed": 1}},
        ({"loss": 0.5}, 3),
        "finished",
    ]


def test_tensorboard_gets_scalars_into_the_run_folder(monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder):
            calls.append(folder)

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    stand_in(monkeypatch, "tensorboardX", SummaryWriter=SummaryWriter)
    check_tracker("tensorboard")
    with tracking("tensorboard", Path("run"), {}) as track:
        track({"loss": 0.5, "eval/loss": 0.25}, 3)
    assert calls == ["run/tensorboard", ("loss", 0.5, 3), ("eval/loss", 0.25, 3), "closed"]


@pytest.mark.parametrize(
    ("name", "package"),
    [("trackio", "trackio"), ("wandb", "wandb"), ("tensorboard", "tensorboardX")],
)
def test_a_tracker_that_is_not_installed_is_refused_with_the_command(name, package, monkeypatch):
    monkeypatch.setattr("sempa_mlx.run.trackers.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=f"{name} is not installed") as caught:
        check_tracker(name)
    assert caught.value.problems[0].fix == f"pip install {package}"
    assert caught.value.exit_code == 2


def test_without_a_tracker_nothing_happens():
    check_tracker(None)
    with tracking(None, Path("run"), {}) as track:
        track({"loss": 1.0}, 1)


def test_only_numbers_are_tracked():
    record = {"step": 3, "loss": 0.5, "best_step": 2, "dev/spearman": None, "skipped_rows": [1]}
    assert numbers(record) == {"loss": 0.5, "best_step": 2.0}
