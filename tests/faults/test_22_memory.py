"""Fault 22: a run that memory cannot hold, or a shortage in the middle of it.

The estimate: tests/training/test_memory.py. Shortages that end the process without a word are
kills: test_01_killed_while_writing.py.
"""

import resource
import sys

import mlx.core as mx
import pytest

from sempa_mlx import runtime
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.training.trainer import Trainer
from tests.command import done, refused, training
from tests.faults.conftest import SETTINGS

SHORTAGES = [
    RuntimeError("[malloc] Unable to allocate 99999999 bytes."),
    RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is greater than the "
                 "maximum allowed buffer size of 8 bytes."),
    RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008)"),
    RuntimeError("cudaMallocAsync failed: out of memory"),
    MemoryError(),
]  # fmt: skip


def limited(monkeypatch, gigabytes):
    monkeypatch.setattr("sempa_mlx.training.memory.memory_limit_gb", lambda: gigabytes)


def test_what_cannot_fit_is_refused_before_the_first_step(space, tmp_path, monkeypatch):
    limited(monkeypatch, 1e-6)
    outcome = refused(4, *training(space, *SETTINGS), "--adapter-path", tmp_path / "run")
    assert "a step takes about" in outcome.errors[0]
    assert "train.micro_batch_tokens or model.max_tokens" in outcome.err
    assert "nothing was trained" in outcome.err
    assert not (tmp_path / "run").exists()


def test_what_only_just_fits_is_warned_of(space, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "estimate_peak_gb", lambda _trainer: 9.0)
    limited(monkeypatch, 10.0)
    outcome = done(*training(space, *SETTINGS), "--adapter-path", tmp_path / "run")
    assert "warning: a step takes about 9.0 GB, and this process may take 10.0 GB" in outcome.err
    limited(monkeypatch, 12.0)
    outcome = done(*training(space, *SETTINGS), "--adapter-path", tmp_path / "run", "--force")
    assert "a step takes about" not in outcome.err


def test_limits_of_the_shell_and_of_containers_count(monkeypatch, tmp_path):
    whole = runtime.memory_limit_gb()
    assert 0 < whole <= runtime.machine().memory_gb
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**60, hard))
    try:
        assert runtime.memory_limit_gb() == whole
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (10**9, 10**9))
    assert runtime.memory_limit_gb() == 1.0
    monkeypatch.undo()
    monkeypatch.setattr(runtime, "CONTAINER_LIMITS", (tmp_path / "limit",))
    (tmp_path / "limit").write_text("500000000\n")
    assert runtime.memory_limit_gb() == 0.5
    (tmp_path / "limit").write_text("max\n")
    assert runtime.memory_limit_gb() <= runtime.machine().memory_gb


@pytest.mark.parametrize("shortage", SHORTAGES, ids=lambda error: str(error)[:12])
def test_a_shortage_amid_a_run_keeps_the_checkpoint_and_says_how_to_go_on(
    space, tmp_path, monkeypatch, shortage
):
    whole = Trainer._step

    def short(trainer, step):
        if step == 3:
            raise shortage
        return whole(trainer, step)

    monkeypatch.setattr(Trainer, "_step", short)
    outcome = refused(4, *training(space, *SETTINGS), "--adapter-path", tmp_path / "run")
    assert "not enough memory in step 3" in outcome.errors[0]
    assert "kept: " in outcome.err
    assert "step-000002" in outcome.err
    monkeypatch.undo()
    command = outcome.err.split("sempa-mlx train ")[1].splitlines()[0].split()
    again = done("train", *command)
    assert "going on after step 2" in again.err


def test_a_shortage_elsewhere_is_no_bug(space, tmp_path, monkeypatch):
    def short(*_given, **_options):
        raise SHORTAGES[0]

    monkeypatch.setattr(Encoder, "encode_counted", short)
    arguments = ("embed", space / "notes.txt", "-o", tmp_path / "a.npy")
    outcome = refused(4, *arguments, "--model", space / "base")
    assert "not enough memory" in outcome.errors[0]
    assert "--batch-tokens" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_card_has_memory_of_its_own(monkeypatch):
    """As mlx tells it under CUDA; limits of the host's memory are none of the card's."""
    monkeypatch.setattr(runtime, "is_gpu", lambda: True)
    monkeypatch.setattr(sys, "platform", "linux")
    info = {"device_name": "a card", "total_memory": 24 * 10**9, "free_memory": 10**9}
    monkeypatch.setattr(mx, "device_info", lambda _device: info)
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (10**9, 10**9))
    assert (runtime.machine().device, runtime.machine().memory_gb) == ("cuda", 24.0)
    assert runtime.memory_limit_gb() == 24.0
