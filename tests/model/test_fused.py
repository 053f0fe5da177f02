import subprocess
import sys
from functools import partial
from threading import Thread

import mlx.core as mx
import pytest

from sempa_mlx.model.fused import differentiating, stays_fused


@partial(mx.compile, shapeless=True)
def chain(x):
    return (x * 2.0 + 1.0) * x


@mx.custom_function
@stays_fused
def function(x):
    return chain(x)


@function.vjp
@stays_fused
def function_vjp(x, cotangent, _output):
    return cotangent * chain(x)


def kernels(array, tmp_path):
    """Count the fused operations in the graph of an array that is not computed yet."""
    mx.export_to_dot(str(tmp_path / "graph.dot"), array)
    return (tmp_path / "graph.dot").read_text().count('label ="Compiled')


X = mx.array([[1.0, 2.0], [3.0, 4.0]])


def gradient(x):
    return mx.grad(lambda y: function(y * 1.0).sum())(x)


def test_mlx_takes_compiled_functions_apart_inside_a_gradient(tmp_path):
    """Why this module is there; when this fails it can go."""
    assert kernels(chain(X), tmp_path) == 1
    assert kernels(gradient(X), tmp_path) == 0


def test_they_stay_fused(tmp_path):
    with differentiating():
        found = gradient(X)
    assert kernels(found, tmp_path) > 0
    assert mx.array_equal(found, gradient(X))
    assert mx.array_equal(found, chain(X))


def test_it_ends_with_the_block(tmp_path):
    with pytest.raises(ZeroDivisionError), differentiating():
        raise ZeroDivisionError
    assert kernels(gradient(X), tmp_path) == 0


def test_errors_come_through():
    @stays_fused
    def wrong(x):
        raise ValueError(x.shape)

    with differentiating(), pytest.raises(ValueError, match="2, 2"):
        wrong(X)


def test_another_stream_and_another_thread():
    found = []

    def run():
        with mx.stream(mx.new_stream(mx.default_device())), differentiating():
            found.append(gradient(X).tolist())

    threads = [Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [chain(X).tolist()] * 3


def test_a_first_call_inside_a_gradient_is_no_trap():
    """As of the base's logits in the KL penalty; a process of its own, as traces are kept.

    mlx keeps one trace a stream and number of axes. Where the first call lies inside a gradient and
    its array does not depend on what is differentiated, that trace has the shape of this very array
    in it, and every later call with a smaller one goes wrong.
    """
    code = """
import sempa_mlx
import mlx.core as mx
import mlx.nn as nn
from sempa_mlx.model.cpu_kernels import _exp_parts, logsumexp
from sempa_mlx.model.fused import stays_fused
from sempa_mlx.model.gradients import value_and_grad
kept = mx.ones((8, 4))
model = nn.Linear(4, 4)
value_and_grad(model, lambda h: logsumexp(kept).sum() + model(h).sum())(kept)
print([part.shape[0] for part in _exp_parts(mx.ones((3, 4)))])
shapes = value_and_grad(model, lambda h: model(h).sum() + stays_fused(
    lambda x: sum(part.shape[0] for part in _exp_parts(x)))(mx.ones((3, 4))))(kept)[0]
print(shapes.item() - model(kept).sum().item())
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    first, second = done.stdout.split("\n")[:2]
    assert first == "[3, 3]"
    assert float(second) == pytest.approx(6)
