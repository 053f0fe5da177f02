"""Fault 6: Ctrl-C or SIGTERM in the middle of a step, once and twice.

In one process: tests/test_cli.py. At any moment, with the printed command run: tests/
test_resume.py.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from sempa_mlx.encoder.encoder import Encoder
from tests.command import done, run, training
from tests.faults.conftest import SETTINGS
from tests.faults.failing_files import temporaries

pytestmark = pytest.mark.unmeasured

DEADLINE = 140
# Step 2 lasts until a file appears, or an hour.
SLOW = """
import pathlib, sys, time
from sempa_mlx.training.trainer import Trainer
from sempa_mlx.__main__ import run

go_on, whole = pathlib.Path(sys.argv.pop(1)), Trainer._step

def slow(trainer, step):
    until = time.monotonic() + 3600
    if step == 2:
        go_on.with_name("in-step-2").touch()
    while step == 2 and not go_on.exists() and time.monotonic() < until:
        time.sleep(0.01)
    return whole(trainer, step)

Trainer._step = slow
run()
"""


def wait_for(what):
    until = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def started(space, folder):
    """Train in a process of its own, wait until it is in its second step; yield the process."""
    command = [*training(space, *SETTINGS), "--adapter-path", folder / "run"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, folder / "go-on", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    try:
        wait_for(lambda: (folder / "in-step-2").exists() or process.poll() is not None)
        assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.communicate()


def catches(process, number):
    """Tell whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    mask = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


def test_once_ends_after_the_step_and_the_printed_command_goes_on(space, tmp_path):
    with started(space, tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: not catches(process, signal.SIGTERM))
        (tmp_path / "go-on").touch()
        talk = process.communicate(timeout=DEADLINE)[1]
    assert process.returncode == 143
    assert "stopped after step 2 of 3" in talk
    assert not (tmp_path / "run" / "run.lock").exists()
    line = talk.split("go on with: sempa-mlx ")[1].splitlines()[0]
    done(*shlex.split(line))
    for name in ("adapters.safetensors", "encoder.json"):
        found, expected = ((each / name).read_bytes() for each in (tmp_path / "run", space / "run"))
        assert found == expected


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_twice_ends_at_once_and_the_run_can_go_on(space, tmp_path):
    """The step would take an hour."""
    with started(space, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        wait_for(lambda: not catches(process, signal.SIGINT))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE)
    assert process.returncode == -signal.SIGINT
    outcome = done("train", "--resume", "--adapter-path", tmp_path / "run")
    assert "was cut off: process" in outcome.err
    assert "going on after step 1" in outcome.err
    assert temporaries(tmp_path) == []


def test_embedding_that_is_interrupted_leaves_nothing(space, here, monkeypatch):
    def interrupted(*_given, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "encode_counted", interrupted)
    outcome = run("embed", space / "notes.txt", "-o", "a.npy", "--model", space / "base")
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert list(here.iterdir()) == []
