import contextvars
import gc
import math
import threading
import weakref

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers, remove_lora_layers

from sempa_mlx.model.adapter_layers import (
    DialledDora,
    DialledLora,
    adapt,
    adapter_shapes,
    choose_linears,
    dora_faults,
    linear_dims,
    put_on,
)
from tests.arrays import as_numpy, assert_equal
from tests.tiny import tiny_model

FEW = settings(max_examples=30, deadline=None, derandomize=True)
KINDS = {"lora": LoRALinear, "dora": DoRALinear}
BASES = ("float32", "bias", "bfloat16", "4-bit", "8-bit")
INPUTS, OUTPUTS, RANK, SCALE = 64, 24, 4, 2.5
TARGETS = [
    ("llama", -1, None),
    ("llama", 0, ("mlp.up_proj",)),
    ("llama", 1, None),
    ("llama", 2, ("self_attn.q_proj", "mlp.down_proj")),
    ("llama", 9, ("self_attn.q_proj",)),
    ("llama-untied", 1, ("self_attn.v_proj", "lm_head")),
    ("llama", 1, ("model.layers.0.mlp.up_proj", "mlp.up_proj")),
    ("lfm2", 1, None),
]


def noise(*shape, key=0):
    return mx.random.normal(shape, key=mx.random.key(key))


def base_of(name):
    linear = nn.Linear(INPUTS, OUTPUTS, bias=name == "bias")
    linear.weight = noise(OUTPUTS, INPUTS) / INPUTS**0.5
    if name == "bias":
        linear.bias = noise(OUTPUTS, key=1)
    if name == "bfloat16":
        linear.set_dtype(mx.bfloat16)
    if name.endswith("-bit"):
        return nn.QuantizedLinear.from_linear(linear, group_size=32, bits=int(name[0]))
    return linear


def trained(base, kind="lora", dropout=0.0):
    """An adapter layer with weights as training leaves them: no part of it does nothing."""
    layer = adapt({"x": base}, dora=kind == "dora", rank=RANK, scale=SCALE, dropout=dropout)["x"]
    layer.lora_a, layer.lora_b = noise(INPUTS, RANK, key=2) / 8, noise(RANK, OUTPUTS, key=3) / 4
    if kind == "dora":
        layer.m = layer.m * (1 + 0.2 * noise(OUTPUTS, key=4))
    return layer


def theirs(layer, kind):
    """mlx-lm's own layer with the same weights."""
    other = KINDS[kind](INPUTS, OUTPUTS, r=RANK, scale=SCALE)
    other.linear = layer.linear
    other.load_weights([(name, layer[name]) for name in ("lora_a", "lora_b")], strict=False)
    if kind == "dora":
        other.m = layer.m
    return other


def inputs_of(layer, rows=5):
    dtype = getattr(layer.linear, "scales", layer.linear.weight).dtype
    return noise(rows, INPUTS, key=5).astype(dtype)


def values(array):
    return np.array(array.astype(mx.float32))


def float64(array):
    return np.array(array).astype(np.float64)


# What a layer computes


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_at_one_a_layer_is_mlx_lms_bit_for_bit(kind, base):
    layer = trained(base_of(base), kind)
    x = inputs_of(layer)
    np.testing.assert_array_equal(values(layer(x)), values(theirs(layer, kind)(x)))
    assert layer(x).dtype == x.dtype
    assert np.abs(values(layer(x)) - values(layer.linear(x))).max() > 0.1


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_at_zero_a_layer_is_its_base_bit_for_bit(kind, base):
    layer = trained(base_of(base), kind)
    x = inputs_of(layer)
    with layer.dial.turned(0.0):
        np.testing.assert_array_equal(values(layer(x)), values(layer.linear(x)))


@pytest.mark.parametrize("kind", KINDS)
def test_at_zero_the_adapter_is_not_even_read(kind):
    layer = trained(base_of("float32"), kind)
    layer.lora_b = mx.full(layer.lora_b.shape, math.nan)
    x = inputs_of(layer)
    assert np.isnan(values(layer(x))).all()
    with layer.dial.turned(0.0):
        np.testing.assert_array_equal(values(layer(x)), values(layer.linear(x)))


@FEW
@given(factor=st.floats(-1, 2), base=st.sampled_from(["float32", "bias"]))
def test_in_between_the_dial_multiplies_the_update_of_lora(factor, base):
    layer = trained(base_of(base))
    x = inputs_of(layer)
    weight = float64(layer.linear.weight) + factor * SCALE * (
        float64(layer.lora_b).T @ float64(layer.lora_a).T
    )
    expected = float64(x) @ weight.T + (float64(layer.linear.bias) if base == "bias" else 0.0)
    with layer.dial.turned(factor):
        np.testing.assert_allclose(values(layer(x)), expected, atol=2e-5)


@FEW
@given(factor=st.floats(-1, 2), base=st.sampled_from(["float32", "bias"]))
def test_in_between_dora_lies_on_the_line_from_the_bases_weights_to_its_own(factor, base):
    layer = trained(base_of(base), "dora")
    x = inputs_of(layer)
    start = float64(layer.linear.weight)
    moved = start + SCALE * np.einsum("ir,ro->oi", float64(layer.lora_a), float64(layer.lora_b))
    end = moved * (float64(layer.m) / np.sqrt((moved**2).sum(axis=1)))[:, None]
    expected = float64(x) @ ((1 - factor) * start + factor * end).T
    expected += float64(layer.linear.bias) if base == "bias" else 0.0
    with layer.dial.turned(factor):
        np.testing.assert_allclose(values(layer(x)), expected, atol=3e-5)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_layer_changes_next_to_nothing(kind, base):
    layer = adapt({"x": base_of(base)}, dora=kind == "dora", rank=RANK, scale=SCALE, dropout=0.0)[
        "x"
    ]
    x = inputs_of(layer)
    bound = 0.0 if kind == "lora" else 0.03 if base == "bfloat16" else 2e-6
    np.testing.assert_allclose(values(layer(x)), values(layer.linear(x)), atol=bound)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_only_in_training(kind):
    layer = trained(base_of("float32"), kind, dropout=0.5)
    x = inputs_of(layer)
    assert np.abs(values(layer(x)) - values(layer(x))).max() > 0.01
    layer.eval()
    np.testing.assert_array_equal(values(layer(x)), values(layer(x)))


def test_a_layer_takes_the_mode_of_the_layer_it_wraps():
    base = base_of("float32")
    for is_training in (True, False):
        assert trained(base.train(is_training)).dropout.training == is_training


@pytest.mark.parametrize("base", BASES[:2] + BASES[3:])
def test_gradients_of_the_magnitudes_are_those_of_finite_differences(base):
    layer = trained(base_of(base), "dora")
    x, goal = inputs_of(layer), noise(5, OUTPUTS, key=6)

    def loss(m):
        layer.m = m
        return (layer(x) * goal).sum()

    start = layer.m
    gradient = float64(mx.grad(loss)(start))
    step = 0.05  # the loss is linear in m
    for index in (0, 7, OUTPUTS - 1):
        nudge = step * (mx.arange(OUTPUTS) == index)
        slope = (loss(start + nudge).item() - loss(start - nudge).item()) / (2 * step)
        assert abs(slope - gradient[index]) < 2e-3 * np.abs(gradient).max()
    assert np.abs(gradient).min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_fusing_gives_one_linear_layer_that_does_the_same(kind):
    layer = trained(base_of("bias"), kind)
    x = inputs_of(layer)
    fused = layer.fuse()
    assert type(fused) is nn.Linear
    np.testing.assert_allclose(values(fused(x)), values(layer(x)), atol=2e-5)


# The dial


def test_the_dial_starts_at_one_and_multiplies_and_goes_back():
    dial = trained(base_of("float32")).dial
    assert dial.factor == 1.0
    with dial.turned(0.5):
        with dial.turned(0.5):
            assert dial.factor == 0.25
        with pytest.raises(KeyError), dial.turned(0.0):
            raise KeyError
        assert dial.factor == 0.5
    assert dial.factor == 1.0


def test_dials_do_not_turn_each_other():
    one, other = trained(base_of("float32")).dial, trained(base_of("float32")).dial
    with one.turned(0.0), other.turned(0.25):
        assert (one.factor, other.factor) == (0.0, 0.25)
        with one.turned(3.0):
            assert (one.factor, other.factor) == (0.0, 0.25)


def test_layers_adapted_together_share_a_dial():
    linears = {"a": base_of("float32"), "b": base_of("bias")}
    layers = adapt(linears, dora=False, rank=2, scale=1.0, dropout=0.0)
    assert layers["a"].dial is layers["b"].dial


def test_a_dial_is_forgotten_after_its_block():
    layer = trained(base_of("float32"))
    with layer.dial.turned(0.5):
        pass
    dial = weakref.ref(layer.dial)
    del layer
    gc.collect()
    assert dial() is None


def test_the_factor_counts_when_the_graph_is_built():
    layer = trained(base_of("float32"))
    x = inputs_of(layer)
    with layer.dial.turned(0.0):
        built = layer(x)
    np.testing.assert_array_equal(values(built), values(layer.linear(x)))


def test_a_thread_begins_at_one_and_a_copied_context_keeps_the_factor():
    layer = trained(base_of("float32"))
    found = {}

    def look(name):
        found[name] = layer.dial.factor
        with layer.dial.turned(0.0):
            found[f"{name} inside"] = layer.dial.factor

    with layer.dial.turned(0.5):
        context = contextvars.copy_context()
        thread = threading.Thread(target=look, args=("thread",))
        thread.start()
        thread.join()
        assert layer.dial.factor == 0.5
    context.run(look, "copy")
    assert found == {"thread": 1.0, "thread inside": 0.0, "copy": 0.5, "copy inside": 0.0}


# Which layers


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_dims_of_packed_weights(bits):
    linear = nn.Linear(INPUTS, OUTPUTS)
    packed = nn.QuantizedLinear.from_linear(linear, group_size=32, bits=bits)
    assert linear_dims(packed) == linear_dims(linear) == (INPUTS, OUTPUTS)
    layer = DialledLora(packed, trained(linear).dial, rank=3, scale=1.0, dropout=0.0)
    assert layer(noise(2, INPUTS)).shape == (2, OUTPUTS)


def test_shapes_are_those_of_the_layers():
    for kind in KINDS:
        layer = trained(base_of("4-bit"), kind)
        shapes = adapter_shapes(layer.linear, RANK, dora=kind == "dora")
        assert shapes == {
            name: value.shape for name, value in tree_flatten(layer.trainable_parameters())
        }


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("name", "layers", "keys"), TARGETS)
def test_layers_and_draws_are_those_of_mlx_lm(name, layers, keys, dora):
    ours, model = tiny_model(name), tiny_model(name)
    adaptable = choose_linears(ours, layers, keys)
    settings = {"rank": 2, "scale": 3.0, "dropout": 0.0}
    mx.random.seed(4)
    put_on(ours, adapt(adaptable, dora=dora, **settings))
    mx.random.seed(4)
    linear_to_lora_layers(model, layers, settings | {"keys": keys}, use_dora=dora)
    assert any("lora_a" in path for path in as_numpy(ours.parameters()))
    assert_equal(ours.parameters(), model.parameters())


def test_linear_layers_with_a_lora_of_their_own_are_left_alone():
    class Split(nn.Linear):
        def to_lora(self, **settings):
            raise AssertionError(settings)

    model = tiny_model(num_hidden_layers=1)
    model.model.layers[0].mlp.up_proj = Split(32, 48)
    chosen = choose_linears(model, -1, None)
    assert len(chosen) == 6
    assert not any("up_proj" in path for path in chosen)


def test_mlx_lm_takes_our_layers_off_again():
    model = tiny_model()
    tokens = mx.array([[5, 9, 17]])
    before = values(model(tokens))
    put_on(model, adapt(choose_linears(model, -1, None), dora=False, rank=2, scale=1.0, dropout=0))
    for module in model.modules():
        if isinstance(module, DialledLora):
            module.lora_b = mx.ones_like(module.lora_b)
    assert np.abs(values(model(tokens)) - before).max() > 0.1
    np.testing.assert_array_equal(values(remove_lora_layers(model)(tokens)), before)


# Where DoRA cannot be had


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_dora_needs_weights_that_fill_32_bits(bits):
    """mlx-lm's own DoRA layer fails on the others; if it learns them, the refusal can go."""
    packed = nn.QuantizedLinear.from_linear(nn.Linear(INPUTS, OUTPUTS), group_size=32, bits=bits)
    layers = {
        kind: adapt({"x": packed}, dora=kind == "dora", rank=2, scale=1.0, dropout=0.0)
        for kind in KINDS
    }
    assert dora_faults(layers["lora"]) == []
    faults = dora_faults(layers["dora"])
    fits = DoRALinear.from_base(packed).lora_a.shape[0] == INPUTS
    assert fits == (bits in (2, 4, 8)) == (faults == [])
    if faults:
        assert f"{bits}-bit" in faults[0].what
        assert "8 bits" in faults[0].fix


def test_every_layer_with_a_row_of_zeros_is_named():
    linears = {path: base_of("bias") for path in ("a", "b", "c")}
    for path in ("a", "c"):
        linears[path].weight[3] = 0
    layers = adapt(linears, dora=True, rank=2, scale=1.0, dropout=0.0)
    assert isinstance(layers["a"], DialledDora)
    faults = dora_faults(layers)
    assert [fault.place for fault in faults] == ["a", "c"]
    assert "row of zeros" in faults[0].what
