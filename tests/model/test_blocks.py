import functools
import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from sempa_mlx.config import LoraConfig
from sempa_mlx.errors import ModelError
from sempa_mlx.model.blocks import TappedModel, Taps, find_blocks, require_attention
from sempa_mlx.model.hidden_states import tapped_states
from sempa_mlx.model.lora import attach
from tests.encoder.oracle import walk
from tests.tiny import MISFITS, SHARING, tiny_model

ROWS = [(5, 9, 17, 3, 80, 41, 2, 66), (5, 9, 17, 90, 12), (5, 9, 17, 3)]
model_of = functools.cache(tiny_model)


def read(model, layers, taps=None, shared=0, rows=ROWS):
    return tapped_states(model, rows, layers, taps or Taps(), shared)


def assert_states_equal(found, expected, rows=ROWS, shared=0):
    """Compare the states of real tokens; `expected` is one array a row."""
    for row, got, wanted in zip(rows, np.array(found), expected, strict=True):
        np.testing.assert_allclose(got[: len(row) - shared], wanted[shared : len(row)], atol=2e-5)


@pytest.mark.parametrize("kind", [*SHARING, *MISFITS])
def test_states_are_those_of_a_walk_by_hand(kind):
    model = model_of(kind)
    depth = len(model.layers)
    expected = [walk(model, row) for row in ROWS]
    found = read(model, range(depth + 1))
    assert sorted(found) == list(range(depth + 1))
    for layer, states in found.items():
        assert_states_equal(states, [each[layer] for each in expected])


@pytest.mark.parametrize("kind", SHARING)
def test_what_is_shared_is_left_out_and_changes_nothing(kind):
    model = model_of(kind)
    whole, after = read(model, (1, 2)), read(model, (1, 2), shared=3)
    for layer in (1, 2):
        assert_states_equal(after[layer], np.array(whole[layer]), shared=3)


def counted(model, monkeypatch):
    """Count how often the class of the model's blocks is run."""
    calls = []
    block = type(model.layers[0])
    original = block.__call__
    monkeypatch.setattr(
        block, "__call__", lambda self, *a, **k: calls.append(self) or original(self, *a, **k)
    )
    return calls


@pytest.mark.parametrize("layer", range(4))
def test_blocks_that_are_not_needed_are_not_run(monkeypatch, layer):
    model = model_of("llama")
    calls = counted(model, monkeypatch)
    read(model, (layer,))
    assert len(calls) == layer


def test_all_layers_take_one_pass(monkeypatch):
    model = model_of("llama")
    calls = counted(model, monkeypatch)
    read(model, range(4))
    assert len(calls) == 3


def test_states_before_a_block_are_read_as_they_came_and_run_as_they_were_changed():
    model = model_of("llama")
    seen, plain = [], read(model, range(4))
    taps = Taps(before={1: lambda states: seen.append(states.shape) or states * 2})
    found = read(model, range(4), taps)
    assert seen == [(3, 8, 32)]
    np.testing.assert_array_equal(np.array(found[1]), np.array(plain[1]))
    expected = [
        walk(model, row, before=lambda index, states: states * 2 if index == 1 else states)
        for row in ROWS
    ]
    for layer in (2, 3):
        assert_states_equal(found[layer], [each[layer] for each in expected])


@pytest.mark.parametrize("kind", [*SHARING, "gemma3_text"])
def test_head_outputs_that_are_set_to_zero_take_attention_away(kind):
    model = model_of(kind)
    found = read(model, (2,), Taps(heads={1: lambda heads: heads * 0}))

    def without_attention(index, block, states, mask):
        if index != 1:
            return block(states, mask, None)
        if kind.startswith("gemma"):
            wide = block.mlp(block.pre_feedforward_layernorm(states))
            return states + block.post_feedforward_layernorm(wide)
        return states + block.mlp(block.post_attention_layernorm(states))

    expected = [walk(model, row, run=without_attention)[2] for row in ROWS]
    assert_states_equal(found[2], expected)


def test_heads_stand_side_by_side():
    """Qwen 3 has 4 heads of 16 here, on states of 32."""
    shapes = []
    taps = Taps(heads={0: lambda heads: shapes.append(heads.shape) or heads})
    model = model_of("qwen3")
    changed, plain = read(model, (2,), taps), read(model, (2,))
    assert shapes == [(3, 8, 64)]
    np.testing.assert_array_equal(np.array(changed[2]), np.array(plain[2]))


def parts(model):
    return [(name, id(module)) for name, module in model.named_modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_not_touched(fails):
    model = model_of("llama")
    before, weights = parts(model), dict(tree_flatten(model.parameters()))
    expected = np.array(model(mx.array([ROWS[0]])))

    def edit(states):
        if fails:
            raise KeyboardInterrupt
        # While the twin runs, too: another thread may be using the model.
        assert parts(model) == before
        return states + 1

    taps = Taps(before={1: edit}, heads={2: edit})
    if fails:
        with pytest.raises(KeyboardInterrupt):
            read(model, (3,), taps)
    else:
        mx.eval(read(model, (3,), taps))
    assert parts(model) == before
    after = dict(tree_flatten(model.parameters()))
    assert all(after[name] is value for name, value in weights.items())
    np.testing.assert_array_equal(np.array(model(mx.array([ROWS[0]]))), expected)


def test_another_thread_sees_the_model_as_it_is():
    model = model_of("llama")
    expected, found = np.array(model(mx.array([ROWS[0]]))), []

    def edit(states):
        thread = threading.Thread(
            target=lambda: found.append(np.array(model(mx.array([ROWS[0]]), cache=None)))
        )
        thread.start()
        thread.join()
        return states * 3

    read(model, (3,), Taps(before={0: edit}))
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_gradients_flow_through_taps():
    model = tiny_model("llama")
    attach(model, LoraConfig(rank=4, alpha=8.0), seed=1)
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = mx.random.normal(module.lora_b.shape, key=mx.random.key(1)) * 0.1
    taps = Taps(before={1: lambda states: states * 2}, heads={0: lambda heads: heads * 0.5})

    def loss(model):
        return (read(model, (2,), taps)[2] ** 2).sum() / 100

    value, gradients = nn.value_and_grad(model, loss)(model)
    flat = dict(tree_flatten(gradients))
    name = "model.layers.0.self_attn.o_proj.lora_b"
    step = mx.random.normal(flat[name].shape, key=mx.random.key(2))
    weight, size = model.layers[0].self_attn.o_proj.lora_b, 3e-3
    sides = []
    for sign in (1, -1):
        model.layers[0].self_attn.o_proj.lora_b = weight + sign * size * step
        sides.append(loss(model).item())
    slope = (flat[name] * step).sum().item()
    assert slope == pytest.approx((sides[0] - sides[1]) / (2 * size), rel=2e-2)
    assert abs(slope) > 1e-3
    assert value.item() > 0
    assert all(mx.abs(gradient).max() == 0 for key, gradient in flat.items() if ".2." in key)


class Wrapped(nn.Module):
    """A model with another way to run its blocks."""

    def __init__(self, inner, run):
        super().__init__()
        self.model, self.args = inner, {}
        inner.run = run

    @property
    def layers(self):
        return self.model.blocks


class Backbone(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def __call__(self, tokens, cache=None):
        return self.run(self, mx.ones((*tokens.shape, 4)))


class Doubling(nn.Module):
    def __call__(self, states):
        return states * 2


class Pair(nn.Module):
    def __call__(self, states):
        return states, None


def through(self, states):
    for block in self.blocks:
        states = block(states)
    return states


@pytest.mark.parametrize(
    ("blocks", "run", "message"),
    [
        ([Doubling(), Doubling()], lambda self, states: states, "does not run its blocks"),
        ([Pair(), Pair()], lambda self, states: self.blocks[0](states)[0], "return more than"),
        (
            [Doubling()],
            lambda self, states: self.blocks[0](mx.stack([states, states])),
            "more than one state a token",
        ),
    ],
)
def test_blocks_that_work_otherwise_are_refused(blocks, run, message):
    model = Wrapped(Backbone(blocks), run)
    with pytest.raises(ModelError) as caught:
        read(model, (1 if len(blocks) > 1 else 0,))
    assert message in caught.value.problems[0].evidence


def test_any_model_with_a_list_of_blocks_will_do():
    model = Wrapped(Backbone([Doubling(), Doubling()]), through)
    found = read(model, (0, 1, 2))
    assert [float(found[layer].max()) for layer in (0, 1, 2)] == [1, 2, 4]


def test_blocks_that_are_no_list_are_refused():
    model = Wrapped(Backbone([Doubling()]), through)
    model.model.blocks = {"first": Doubling()}
    assert find_blocks(model.model, [Doubling()]) is None
    with pytest.raises(ModelError) as caught:
        TappedModel(model, (0,), Taps())
    assert "not one list" in caught.value.problems[0].evidence


def test_attention_is_asked_for_in_every_block():
    for kind in (*SHARING, "gemma3_text"):
        require_attention(model_of(kind))
    with pytest.raises(ModelError) as caught:
        require_attention(model_of("lfm2"))
    assert caught.value.problems[0].evidence == "no self-attention with an `o_proj` in blocks 0, 1"
