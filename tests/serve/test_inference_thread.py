"""The thread of the model lets go of MLX before it ends."""

import subprocess
import sys
import threading

import mlx.core as mx
import pytest

from sempa_mlx.serve.inference_thread import inference_thread

USES_MLX_ON_A_THREAD = """
import mlx.core as mx
from sempa_mlx.serve.inference_thread import inference_thread

double = mx.compile(lambda x: x @ x + x)
with inference_thread() as thread:
    thread.submit(lambda: mx.eval(double(mx.ones((64, 64))))).result()
"""


@pytest.mark.parametrize("error", [None, ValueError])
def test_streams_are_cleared_last_on_the_thread_itself(monkeypatch, error):
    cleared = []
    monkeypatch.setattr(mx, "clear_streams", lambda: cleared.append(threading.get_ident()))
    try:
        with inference_thread() as thread:
            own = thread.submit(threading.get_ident).result()
            assert not cleared
            if error:
                raise error
    except ValueError:
        pass
    assert cleared == [own] != [threading.get_ident()]


def test_the_work_before_it_is_done_first(monkeypatch):
    seen = []
    monkeypatch.setattr(mx, "clear_streams", lambda: seen.append("cleared"))
    with inference_thread() as thread:
        for number in range(5):
            thread.submit(seen.append, number)
    assert seen == [0, 1, 2, 3, 4, "cleared"]


def test_a_process_ends_without_an_abort():
    for _ in range(5):
        ended = subprocess.run(
            [sys.executable, "-c", USES_MLX_ON_A_THREAD],
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert ended.returncode == 0, ended.stderr
