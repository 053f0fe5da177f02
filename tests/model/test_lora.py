import json
import math
import shutil
import threading
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import gpt2
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import dequantize_model

from sempa_mlx.config import LoraConfig
from sempa_mlx.errors import ModelError
from sempa_mlx.model.adapter_layers import adapt, choose_linears, covering_keys, put_on
from sempa_mlx.model.lora import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_weights,
    attach,
    dialled,
    linear_keys,
    load_adapter,
    read_adapter_config,
    save_adapter,
)
from tests.arrays import as_numpy, assert_close, assert_equal
from tests.tiny import move_adapter, tiny_loaded, tiny_model

TOKENS = mx.array([[5, 9, 17, 33, 2, 64]])
SETTINGS = LoraConfig(rank=4, alpha=8.0)
KINDS = ("lora", "dora", "rslora")
BITS = (None, 8, 4)  # of the base: None means plain float32
PACKABLE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}  # whole groups of 32
LLAMA_KEYS = (
    "mlp.down_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "self_attn.k_proj",
    "self_attn.o_proj",
    "self_attn.q_proj",
    "self_attn.v_proj",
)


def outputs(model):
    return np.array(model(TOKENS))


def settings_of(kind, **changes):
    return LoraConfig(**{"kind": kind, "rank": 4, "alpha": 8.0} | changes)


def adapted(settings=SETTINGS, **changes):
    loaded = tiny_loaded(**changes)
    attach(loaded.model, settings, seed=3)
    move_adapter(loaded.model, 0.1)
    return loaded


def base_of(bits):
    loaded = tiny_loaded(**PACKABLE)
    if bits is not None:
        nn.quantize(loaded.model, group_size=32, bits=bits)
    return loaded


def trained_of(kind, bits):
    loaded = base_of(bits)
    attach(loaded.model, settings_of(kind), seed=3)
    move_adapter(loaded.model, 0.1)
    return loaded


def loss_and_gradients(model):
    def loss(model):
        return model(TOKENS).square().mean()

    value, gradients = nn.value_and_grad(model, loss)(model)
    return value.item(), as_numpy(gradients)


@pytest.fixture
def saved(tmp_path):
    """A trained model and the folder its adapter is in."""
    loaded = adapted()
    save_adapter(tmp_path / "run", adapter_weights(loaded.model), SETTINGS, loaded)
    return loaded, tmp_path / "run"


# Attaching


def test_linear_keys_name_every_linear_layer_of_a_block():
    assert linear_keys(tiny_model("llama")) == LLAMA_KEYS


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2"])
def test_attaching_changes_no_output(kind):
    model = tiny_model(kind)
    before = outputs(model)
    attach(model, SETTINGS, seed=0)
    np.testing.assert_array_equal(outputs(model), before)


def test_only_the_adapter_is_trainable():
    model = tiny_model()
    attach(model, SETTINGS, seed=0)
    names = set(adapter_weights(model))
    assert names == {
        f"model.layers.{layer}.{key}.lora_{part}"
        for layer in range(3)
        for key in LLAMA_KEYS
        for part in "ab"
    }
    query = model.layers[0].self_attn.q_proj
    assert (query.lora_a.shape, query.lora_b.shape) == ((32, 4), (4, 32))
    assert query.scale == 8.0 / 4


def test_dora_trains_magnitudes_too_and_they_start_as_the_norms_of_the_rows():
    model = tiny_model()
    attach(model, settings_of("dora"), seed=0)
    names = set(adapter_weights(model))
    assert {name.rpartition(".")[2] for name in names} == {"lora_a", "lora_b", "m"}
    assert len(names) == 3 * len(LLAMA_KEYS) * 3
    layer = model.layers[1].mlp.up_proj
    norms = np.linalg.norm(np.array(layer.linear.weight, dtype=np.float64), axis=1)
    np.testing.assert_allclose(np.array(layer.m), norms, rtol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_attaching_dora_changes_outputs_by_rounding_only(bits):
    model = base_of(bits).model
    before = outputs(model)
    attach(model, settings_of("dora"), seed=0)
    np.testing.assert_allclose(outputs(model), before, atol=1e-4)
    with dialled(model, 0.0):
        np.testing.assert_array_equal(outputs(model), before)


def test_rslora_is_lora_whose_scale_falls_with_the_root_of_the_rank():
    plain, stabilised = (adapted(settings_of(kind, rank=9)).model for kind in ("lora", "rslora"))
    assert stabilised.layers[0].self_attn.q_proj.scale == 8.0 / 3
    with dialled(plain, 3.0):  # 8 / 3 over 8 / 9
        np.testing.assert_allclose(outputs(stabilised), outputs(plain), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_a_step_lowers_the_loss_on_every_base(kind, bits):
    model = trained_of(kind, bits).model
    first, gradients = loss_and_gradients(model)
    assert gradients.keys() == adapter_weights(model).keys()
    assert all(np.isfinite(grad).all() and np.any(grad) for grad in gradients.values())
    update = {name: mx.array(grad) for name, grad in gradients.items()}
    optim.SGD(learning_rate=1e-3).update(model, tree_unflatten(list(update.items())))
    assert loss_and_gradients(model)[0] < first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS[1:])
def test_gradients_on_packed_weights_are_those_on_the_unpacked_ones(kind, bits):
    packed, unpacked = base_of(bits).model, dequantize_model(base_of(bits).model)
    assert not any(isinstance(module, nn.QuantizedLinear) for module in unpacked.modules())
    unpacked.freeze()
    found = []
    for model in (packed, unpacked):
        attach(model, settings_of(kind), seed=3)
        move_adapter(model, 0.1)
        found.append(loss_and_gradients(model))
    (loss, gradients), (expected_loss, expected) = found
    assert math.isclose(loss, expected_loss, rel_tol=1e-4)
    assert_close(gradients, expected, share=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_count_from_the_last_block(kind):
    model = tiny_model()
    settings = settings_of(kind, layers=1, keys=("self_attn.q_proj", "mlp.up_proj"))
    attach(model, settings, seed=0)
    assert set(adapter_weights(model)) == {
        f"model.layers.2.{key}.{leaf}"
        for key in settings.keys
        for leaf in ("lora_a", "lora_b", "m")[: 3 if kind == "dora" else 2]
    }


def test_the_seed_decides_lora_a():
    def drawn(seed):
        model = tiny_model()
        attach(model, SETTINGS, seed)
        return np.array(model.layers[0].self_attn.q_proj.lora_a)

    np.testing.assert_array_equal(drawn(5), drawn(5))
    assert np.abs(drawn(5) - drawn(6)).max() > 0.01


def test_every_unknown_key_is_named_and_nothing_is_attached():
    model = tiny_model()
    with pytest.raises(ModelError) as error:
        attach(model, LoraConfig(keys=("q_proj", "self_attn.q_proj", "mlp.nope")), seed=0)
    assert [problem.what for problem in error.value.problems] == [
        "lora.keys: `q_proj` is no linear layer",
        "lora.keys: `mlp.nope` is no linear layer",
    ]
    assert "self_attn.q_proj" in error.value.problems[0].fix
    assert not any("lora" in name for name, _ in tree_flatten(model.parameters()))


def test_a_key_that_only_other_blocks_have_is_unknown():
    model = tiny_model("lfm2")  # a convolution, then attention
    assert "conv.in_proj" in linear_keys(model)
    assert "conv.in_proj" not in linear_keys(model, layers=1)
    with pytest.raises(ModelError, match=r"`conv.in_proj` is no linear layer"):
        attach(model, LoraConfig(layers=1, keys=("conv.in_proj",)), seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_adapter_is_refused(saved, kind):
    trained, folder = saved
    with pytest.raises(ModelError, match="has an adapter already"):
        attach(trained.model, settings_of(kind), seed=0)
    with pytest.raises(ModelError, match="has an adapter already"):
        load_adapter(trained, folder)


def test_dora_that_mlx_lm_could_not_load_is_refused_and_nothing_is_attached():
    loaded = base_of(6)
    before = set(dict(tree_flatten(loaded.model.parameters())))
    with pytest.raises(ModelError, match="no DoRA on 6-bit weights") as error:
        attach(loaded.model, settings_of("dora"), seed=0)
    assert len(error.value.problems) == 1
    assert set(dict(tree_flatten(loaded.model.parameters()))) == before
    attach(loaded.model, settings_of("lora"), seed=0)


# The dial


def test_dialled_to_zero_is_the_base_bit_for_bit():
    base, trained = tiny_loaded(), adapted()
    assert np.abs(outputs(trained.model) - outputs(base.model)).max() > 0.1
    with dialled(trained.model, 0.0):
        np.testing.assert_array_equal(outputs(trained.model), outputs(base.model))


def test_the_dial_goes_back():
    model = adapted().model
    before = outputs(model)
    with dialled(model, 0.5):
        half = outputs(model)
        with dialled(model, 0.0):
            pass
        np.testing.assert_array_equal(outputs(model), half)
    np.testing.assert_array_equal(outputs(model), before)
    assert np.abs(half - before).max() > 0.01


def test_the_dial_goes_back_after_an_exception():
    model = adapted().model
    before = outputs(model)
    with pytest.raises(KeyboardInterrupt), dialled(model, 0.0):
        raise KeyboardInterrupt
    np.testing.assert_array_equal(outputs(model), before)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_on_every_base_is_the_base_at_zero(kind, bits):
    base, trained = base_of(bits), trained_of(kind, bits)
    assert np.abs(outputs(trained.model) - outputs(base.model)).max() > 0.1
    with dialled(trained.model, 0.0):
        np.testing.assert_array_equal(outputs(trained.model), outputs(base.model))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_inside_each_other_multiply(kind):
    model = adapted(settings_of(kind)).model
    with dialled(model, 0.25):
        expected = outputs(model)
    with dialled(model, 0.5), dialled(model, 0.5):
        np.testing.assert_array_equal(outputs(model), expected)


def test_dialling_writes_to_no_layer():
    model = adapted().model
    with dialled(model, 0.25):
        assert {layer.self_attn.q_proj.scale for layer in model.layers} == {2.0}


def test_a_model_is_dialled_alone():
    one, other = adapted().model, adapted().model
    before = outputs(other)
    with dialled(one, 0.0):
        np.testing.assert_array_equal(outputs(other), before)
        assert np.abs(outputs(one) - before).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_threads_dial_one_model_at_the_same_time(kind):
    model = adapted(settings_of(kind)).model
    factors = (0.0, 0.5, 1.0)
    expected = {}
    for factor in factors:
        with dialled(model, factor):
            expected[factor] = outputs(model)
    found = {factor: [] for factor in factors}
    barrier = threading.Barrier(len(factors), timeout=60)

    def work(factor):
        with dialled(model, factor):
            for _ in range(3):
                barrier.wait()  # every thread is inside its block
                found[factor].append(outputs(model))
            barrier.wait()

    threads = [threading.Thread(target=work, args=(factor,)) for factor in factors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for factor in factors:
        assert len(found[factor]) == 3
        for result in found[factor]:
            np.testing.assert_array_equal(result, expected[factor])


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_without_a_dial_are_refused_instead_of_left_on(use_dora):
    model = tiny_model()
    linear_to_lora_layers(model, 1, {"rank": 2, "scale": 1.0, "dropout": 0.0}, use_dora)
    name = "DoRALinear" if use_dora else "LoRALinear"
    with pytest.raises(ModelError, match=rf"has no dial \({name}\)"), dialled(model, 0.5):
        pass
    with dialled(model, 1.0):  # nothing to do
        outputs(model)


def test_dialling_a_model_without_adapter_does_nothing():
    model = tiny_model()
    before = outputs(model)
    with dialled(model, 0.0):
        np.testing.assert_array_equal(outputs(model), before)


def test_a_training_step_leaves_the_base_weights_alone():
    model = tiny_model()
    before = as_numpy(model.parameters())
    attach(model, SETTINGS, seed=0)

    def loss(model):
        return model(TOKENS).square().mean()

    first, gradient = nn.value_and_grad(model, loss)(model)
    optim.SGD(learning_rate=0.1).update(model, gradient)
    assert loss(model).item() < first.item()
    after = {
        name.replace(".linear.", "."): value
        for name, value in tree_flatten(model.parameters())
        if "lora_" not in name
    }
    assert_equal(after, before)


# Saving


def test_the_file_holds_only_the_adapter(saved):
    _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    names = mx.load(str(folder / WEIGHTS_FILE)).keys()
    assert {name.rpartition(".")[2] for name in names} == {"lora_a", "lora_b"}
    assert len(names) == 3 * len(LLAMA_KEYS) * 2


def test_the_config_has_mlx_lms_keys_and_ours_apart(saved):
    loaded, folder = saved
    config = json.loads((folder / CONFIG_FILE).read_text())
    assert config["lora_parameters"] == {
        "rank": 4,
        "scale": 2.0,
        "dropout": 0.0,
        "keys": list(LLAMA_KEYS),
    }
    assert config["num_layers"] == -1
    assert config["fine_tune_type"] == "lora"
    assert config["sempa"]["base_fingerprint"] == loaded.fingerprint
    assert config["sempa"]["alpha"] == 8.0
    assert config["sempa"]["kind"] == "lora"


@pytest.mark.parametrize(
    ("kind", "written", "scale"),
    [("lora", "lora", 2.0), ("dora", "dora", 2.0), ("rslora", "lora", 4.0)],
)
def test_the_config_says_what_mlx_lm_and_what_we_have_to_know(tmp_path, kind, written, scale):
    settings = settings_of(kind, dropout=0.25)
    trained = adapted(settings)
    save_adapter(tmp_path, adapter_weights(trained.model), settings, trained)
    config = read_adapter_config(tmp_path)
    assert config["fine_tune_type"] == written
    assert config["lora_parameters"] == {
        "rank": 4,
        "scale": scale,
        "dropout": 0.25,
        "keys": list(LLAMA_KEYS),
    }
    assert config["sempa"]["kind"] == kind
    leaves = {name.rpartition(".")[2] for name in mx.load(str(tmp_path / WEIGHTS_FILE))}
    assert leaves == {"lora_a", "lora_b", *(["m"] if kind == "dora" else [])}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "part", [{}, {"layers": 1, "keys": ("self_attn.v_proj",)}], ids=["all", "one"]
)
def test_mlx_lm_loads_what_was_saved(tmp_path, kind, part):
    settings = settings_of(kind, **part)
    trained = adapted(settings)
    save_adapter(tmp_path, adapter_weights(trained.model), settings, trained)
    other = tiny_loaded().model
    load_adapters(other, str(tmp_path))
    other.eval()
    np.testing.assert_array_equal(outputs(other), outputs(trained.model))
    base = outputs(tiny_loaded().model)
    assert np.abs(outputs(other) - base).max() > 1e-3
    fresh = tiny_loaded()
    load_adapter(fresh, tmp_path)
    np.testing.assert_array_equal(outputs(fresh.model), outputs(trained.model))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
def test_both_loaders_read_every_kind_on_every_base(tmp_path, kind, bits):
    trained = trained_of(kind, bits)
    save_adapter(tmp_path, adapter_weights(trained.model), settings_of(kind), trained)
    other, fresh = base_of(bits).model, base_of(bits)
    load_adapters(other, str(tmp_path))
    load_adapter(fresh, tmp_path)
    for model in (other.eval(), fresh.model):
        np.testing.assert_array_equal(outputs(model), outputs(trained.model))
    with dialled(fresh.model, 0.0):
        np.testing.assert_array_equal(outputs(fresh.model), outputs(base_of(bits).model))


def test_keys_of_blocks_under_another_name_are_written(tmp_path):
    """GPT-2's blocks are `model.h`."""
    sizes = {"n_ctx": 64, "n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 64}
    shape = {"layer_norm_epsilon": 1e-5, "vocab_size": 128, "num_key_value_heads": 2}
    arguments = gpt2.ModelArgs("gpt2", **sizes, **shape)
    model, other = gpt2.Model(arguments), gpt2.Model(arguments)
    other.update(model.parameters())
    trained = replace(tiny_loaded(), model=model)
    settings = LoraConfig(rank=2, keys=("attn.c_attn", "mlp.c_fc"))
    attach(model, settings, seed=0)
    move_adapter(model, 0.1)
    save_adapter(tmp_path, adapter_weights(model), settings, trained)
    keys = read_adapter_config(tmp_path)["lora_parameters"]["keys"]
    assert keys == ["attn.c_attn", "mlp.c_fc"]
    load_adapters(other, str(tmp_path))
    np.testing.assert_array_equal(outputs(other), outputs(model))


@pytest.mark.parametrize(
    ("layers", "paths", "keys"),
    [
        (-1, ["0.mlp.up_proj", "1.mlp.up_proj", "2.mlp.up_proj"], ["mlp.up_proj"]),
        (2, ["1.mlp.up_proj", "2.mlp.up_proj"], ["mlp.up_proj"]),
        (-1, ["1.mlp.up_proj", "2.mlp.up_proj"], None),
        (1, ["1.mlp.up_proj", "2.mlp.up_proj"], None),
        (2, ["1.mlp.up_proj", "2.mlp.up_proj", "2.mlp.down_proj"], None),
    ],
)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_keys_choose_the_adapted_layers_and_no_others(layers, paths, keys, with_adapter):
    """By names inside a block where those will do, else by whole paths."""
    paths = [f"model.layers.{path}" for path in paths]
    model = tiny_loaded().model
    plain = tiny_loaded().model
    if with_adapter:
        linears = choose_linears(model, -1, paths)
        put_on(model, adapt(linears, dora=False, rank=2, scale=1.0, dropout=0.0))
    found = covering_keys(model, layers, paths)
    assert found == (keys or sorted(paths))
    assert choose_linears(plain, layers, found).keys() == set(paths)


def test_load_adapter_gives_the_trained_model_back(saved):
    trained, folder = saved
    fresh = tiny_loaded()
    config = load_adapter(fresh, folder)
    assert config["model"] == trained.location.name
    np.testing.assert_array_equal(outputs(fresh.model), outputs(trained.model))
    with dialled(fresh.model, 0.0):
        np.testing.assert_array_equal(outputs(fresh.model), outputs(tiny_loaded().model))


@pytest.mark.parametrize("half", [mx.float16, mx.bfloat16])
def test_a_file_in_half_precision_becomes_float32(saved, half):
    trained, folder = saved
    halves = {name: t.astype(half) for name, t in adapter_weights(trained.model).items()}
    edit_weights(folder, lambda weights: weights.update(halves))
    fresh = tiny_loaded()
    load_adapter(fresh, folder)
    assert {tensor.dtype for tensor in adapter_weights(fresh.model).values()} == {mx.float32}
    for name, tensor in adapter_weights(trained.model).items():
        rounded = np.array(tensor.astype(half).astype(mx.float32))
        np.testing.assert_array_equal(np.array(adapter_weights(fresh.model)[name]), rounded)


def test_an_adapter_of_mlx_lm_without_our_key_is_loaded(saved):
    trained, folder = saved
    edit_config(folder, lambda config: config.pop("sempa"))
    edit_config(folder, lambda config: config["lora_parameters"].pop("keys"))
    fresh = tiny_loaded()
    load_adapter(fresh, folder)
    np.testing.assert_array_equal(outputs(fresh.model), outputs(trained.model))


def test_saving_replaces_the_adapter_of_before(saved):
    trained, folder = saved
    move_adapter(trained.model, 0.3)
    save_adapter(folder, adapter_weights(trained.model), SETTINGS, trained)
    fresh = tiny_loaded()
    load_adapter(fresh, folder)
    np.testing.assert_array_equal(outputs(fresh.model), outputs(trained.model))


# Adapters that do not fit


def edit_config(folder, change):
    config = json.loads((folder / CONFIG_FILE).read_text())
    change(config)
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def edit_weights(folder, change):
    weights = mx.load(str(folder / WEIGHTS_FILE))
    weights = {name: mx.array(np.array(value)) for name, value in weights.items()}
    change(weights)
    mx.save_safetensors(str(folder / WEIGHTS_FILE), weights)


def refusal(folder, loaded=None):
    """What load_adapter says; the model must come out of it untouched."""
    loaded = loaded or tiny_loaded()
    before = as_numpy(loaded.model.parameters())
    with pytest.raises(ModelError) as error:
        load_adapter(loaded, folder)
    assert_equal(loaded.model.parameters(), before)
    assert all(problem.place.startswith(str(folder)) for problem in error.value.problems)
    return [problem.what for problem in error.value.problems]


def test_every_mismatch_is_named_at_once(saved):
    _, folder = saved

    def spoil(weights):
        head = "model.layers.0.self_attn"
        weights[f"{head}.q_proj.lora_a"] = mx.ones((31, 4))
        del weights[f"{head}.k_proj.lora_b"]
        weights["model.layers.9.mlp.up_proj.lora_a"] = mx.ones((32, 4))
        weights[f"{head}.v_proj.m"] = mx.ones((4,))

    edit_weights(folder, spoil)
    faults = refusal(folder, tiny_loaded(seed=1))
    assert len(faults) == 5
    assert faults[0].startswith("trained on other weights: `tiny-llama`")
    assert "model.layers.0.self_attn.k_proj.lora_b: missing" in faults
    assert "model.layers.0.self_attn.q_proj.lora_a: shape (31, 4), the model needs (32, 4)" in (
        faults
    )
    for name in ("model.layers.9.mlp.up_proj.lora_a", "model.layers.0.self_attn.v_proj.m"):
        assert any(fault.startswith(f"{name}: ") for fault in faults)


def test_an_adapter_of_other_weights_is_refused(saved):
    trained, folder = saved
    other = tiny_loaded(seed=1)
    (fault,) = refusal(folder, other)
    assert trained.fingerprint in fault
    assert other.fingerprint in fault


def test_an_adapter_of_another_size_is_refused(saved):
    _, folder = saved
    edit_config(folder, lambda config: config.pop("sempa"))
    faults = refusal(folder, tiny_loaded(intermediate_size=40))
    assert len(faults) == 3 * 3  # up, gate (outputs) and down (inputs) of three blocks
    assert "model.layers.0.mlp.up_proj.lora_b: shape (4, 48), the model needs (4, 40)" in faults


def test_a_rank_that_contradicts_the_tensors_is_refused(saved):
    _, folder = saved
    edit_config(folder, lambda config: config["lora_parameters"].update(rank=5))
    assert len(refusal(folder)) == 3 * len(LLAMA_KEYS) * 2


def test_tensors_of_layers_that_the_config_leaves_out_are_refused(saved):
    """mlx-lm's loader would drop them, or refuse: never load a part of an adapter."""
    _, folder = saved
    edit_config(folder, lambda config: config.update(num_layers=1))
    faults = refusal(folder)
    assert len(faults) == 2 * len(LLAMA_KEYS) * 2
    assert all("no such adapter tensor" in fault for fault in faults)


def test_tensors_of_keys_that_the_config_leaves_out_are_refused(saved):
    _, folder = saved
    edit_config(folder, lambda config: config["lora_parameters"]["keys"].remove("mlp.up_proj"))
    faults = refusal(folder)
    assert len(faults) == 3 * 2
    assert all(".mlp.up_proj.lora_" in fault for fault in faults)


def test_layers_without_tensors_are_refused(saved):
    _, folder = saved

    def drop(weights):
        for part in "ab":
            del weights[f"model.layers.1.mlp.up_proj.lora_{part}"]

    edit_weights(folder, drop)
    (fault,) = refusal(folder)
    assert fault.startswith("model.layers.1.mlp.up_proj: ")


def test_every_mismatch_of_a_dora_adapter_is_named_at_once(tmp_path):
    trained = adapted(settings_of("dora"))
    save_adapter(tmp_path, adapter_weights(trained.model), settings_of("dora"), trained)

    def spoil(weights):
        del weights["model.layers.0.mlp.up_proj.m"]
        weights["model.layers.1.mlp.up_proj.m"] = mx.ones((47,))
        weights["model.layers.2.mlp.up_proj.lora_b"] = mx.ones((4, 47))

    edit_weights(tmp_path, spoil)
    assert refusal(tmp_path) == [
        "model.layers.0.mlp.up_proj.m: missing",
        "model.layers.1.mlp.up_proj.m: shape (47,), the model needs (48,)",
        "model.layers.2.mlp.up_proj.lora_b: shape (4, 47), the model needs (4, 48)",
    ]


@pytest.mark.parametrize(
    ("kind", "claimed", "words"), [("lora", "dora", "missing"), ("dora", "lora", "no such")]
)
def test_a_kind_that_contradicts_the_tensors_is_refused(tmp_path, kind, claimed, words):
    trained = adapted(settings_of(kind))
    save_adapter(tmp_path, adapter_weights(trained.model), settings_of(kind), trained)
    edit_config(tmp_path, lambda config: config.update(fine_tune_type=claimed))
    faults = refusal(tmp_path)
    assert len(faults) == 3 * len(LLAMA_KEYS)
    assert all(".m: " in fault and words in fault for fault in faults)


def test_a_config_that_names_no_layer_is_refused(saved):
    _, folder = saved
    edit_config(folder, lambda config: config["lora_parameters"].update(keys=["q_proj"]))
    (fault,) = refusal(folder)
    assert "names no linear layer" in fault


def test_a_truncated_weights_file_is_refused(saved):
    _, folder = saved
    whole = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(whole[: len(whole) // 2])
    (fault,) = refusal(folder)
    assert fault.startswith("unreadable")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.pop("num_layers"), "num_layers"),
        (lambda config: config["lora_parameters"].pop("scale"), "scale"),
        (lambda config: config.update(lora_parameters=None), "not a LoRA config"),
        (lambda config: config.update(fine_tune_type="full"), "full adapters are not supported"),
        (lambda config: config.update(num_layers="all"), "num_layers is a whole number"),
        (lambda config: config["lora_parameters"].update(rank=4.5), "rank is a whole number"),
        (lambda config: config["lora_parameters"].update(rank=0), "above 0"),
        (lambda config: config["lora_parameters"].update(scale="2"), "scale is a number"),
        (lambda config: config["lora_parameters"].update(scale=math.nan), "scale is a number"),
        (lambda config: config["lora_parameters"].update(dropout=2), "dropout lies in 0"),
        (lambda config: config["lora_parameters"].update(dropout=None), "dropout lies in 0"),
        (lambda config: config["lora_parameters"].update(keys=5), "keys are null or"),
        (lambda config: config["lora_parameters"].update(keys=[5]), "keys are null or"),
        (lambda config: config.update(sempa="x"), "sempa is an object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unusable_config_is_refused(saved, change, words):
    _, folder = saved
    edit_config(folder, change)
    (fault,) = refusal(folder)
    assert words in fault


@pytest.mark.parametrize("text", ["{", "[]", '"x"', ""])
def test_a_config_that_is_no_object_is_refused(saved, text):
    _, folder = saved
    (folder / CONFIG_FILE).write_text(text)
    (fault,) = refusal(folder)
    assert fault.startswith("not a LoRA config")


def test_a_folder_without_an_adapter(tmp_path, saved):
    _, folder = saved
    with pytest.raises(ModelError, match=f"missing {WEIGHTS_FILE}, {CONFIG_FILE}") as error:
        read_adapter_config(tmp_path)
    assert "sempa-mlx train" in error.value.problems[0].fix
    shutil.copy(folder / CONFIG_FILE, tmp_path)
    with pytest.raises(ModelError, match=f"missing {WEIGHTS_FILE}$"):
        read_adapter_config(tmp_path)
