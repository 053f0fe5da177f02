import json
import shutil

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters

from sempa_mlx.config import LoraConfig
from sempa_mlx.errors import ModelError
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
from tests.tiny import tiny_loaded, tiny_model

TOKENS = mx.array([[5, 9, 17, 33, 2, 64]])
SETTINGS = LoraConfig(rank=4, alpha=8.0)
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


def set_lora_b(model, size=0.1):
    for index, (name, value) in enumerate(tree_flatten(model.trainable_parameters())):
        if name.endswith("lora_b"):
            noise = size * mx.random.normal(value.shape, key=mx.random.key(index))
            model.load_weights([(name, noise)], strict=False)


def adapted(settings=SETTINGS, **changes):
    loaded = tiny_loaded(**changes)
    attach(loaded.model, settings, seed=3)
    set_lora_b(loaded.model)
    return loaded


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


def test_layers_count_from_the_last_block():
    model = tiny_model()
    settings = LoraConfig(rank=2, layers=1, keys=("self_attn.q_proj", "mlp.up_proj"))
    attach(model, settings, seed=0)
    assert set(adapter_weights(model)) == {
        f"model.layers.2.{key}.lora_{part}" for key in settings.keys for part in "ab"
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


def test_the_dial_multiplies_the_scale_the_layers_have():
    model = adapted().model
    with dialled(model, 0.25):
        assert {layer.self_attn.q_proj.scale for layer in model.layers} == {0.5}
        with dialled(model, 0.5):
            assert {layer.self_attn.q_proj.scale for layer in model.layers} == {0.25}


def test_dialling_a_model_without_adapter_does_nothing():
    model = tiny_model()
    before = outputs(model)
    with dialled(model, 0.0):
        np.testing.assert_array_equal(outputs(model), before)


def test_a_training_step_leaves_the_base_weights_alone():
    model = tiny_model()
    before = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    attach(model, SETTINGS, seed=0)

    def loss(model):
        return model(TOKENS).square().mean()

    first, gradient = nn.value_and_grad(model, loss)(model)
    optim.SGD(learning_rate=0.1).update(model, gradient)
    assert loss(model).item() < first.item()
    after = {
        name.replace(".linear.", "."): np.array(value)
        for name, value in tree_flatten(model.parameters())
        if "lora_" not in name
    }
    assert after.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


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


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, LoraConfig(rank=2, alpha=6.0, layers=1, keys=("self_attn.v_proj",))],
    ids=["all", "one"],
)
def test_mlx_lm_loads_what_was_saved(tmp_path, settings):
    trained = adapted(settings)
    save_adapter(tmp_path, adapter_weights(trained.model), settings, trained)
    other = tiny_loaded().model
    load_adapters(other, str(tmp_path))
    other.eval()
    np.testing.assert_array_equal(outputs(other), outputs(trained.model))
    base = outputs(tiny_loaded().model)
    assert np.abs(outputs(other) - base).max() > 1e-3


def test_load_adapter_gives_the_trained_model_back(saved):
    trained, folder = saved
    fresh = tiny_loaded()
    config = load_adapter(fresh, folder)
    assert config["model"] == trained.location.name
    np.testing.assert_array_equal(outputs(fresh.model), outputs(trained.model))
    with dialled(fresh.model, 0.0):
        np.testing.assert_array_equal(outputs(fresh.model), outputs(tiny_loaded().model))


def test_an_adapter_of_mlx_lm_without_our_key_is_loaded(saved):
    trained, folder = saved
    edit_config(folder, lambda config: config.pop("sempa"))
    edit_config(folder, lambda config: config["lora_parameters"].pop("keys"))
    fresh = tiny_loaded()
    load_adapter(fresh, folder)
    np.testing.assert_array_equal(outputs(fresh.model), outputs(trained.model))


def test_an_adapter_of_a_quantised_base_is_loaded(tmp_path):
    def quantised():
        loaded = tiny_loaded(hidden_size=64, intermediate_size=64, head_dim=16)
        nn.quantize(loaded.model, group_size=32, bits=4)
        return loaded

    trained = quantised()
    attach(trained.model, SETTINGS, seed=0)
    set_lora_b(trained.model)
    save_adapter(tmp_path, adapter_weights(trained.model), SETTINGS, trained)
    fresh = quantised()
    load_adapter(fresh, tmp_path)
    np.testing.assert_array_equal(outputs(fresh.model), outputs(trained.model))


def test_saving_replaces_the_adapter_of_before(saved):
    trained, folder = saved
    set_lora_b(trained.model, size=0.3)
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
    before = {name: np.array(value) for name, value in tree_flatten(loaded.model.parameters())}
    with pytest.raises(ModelError) as error:
        load_adapter(loaded, folder)
    after = {name: np.array(value) for name, value in tree_flatten(loaded.model.parameters())}
    assert after.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
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
        (lambda config: config.update(fine_tune_type="dora"), "dora adapters are not supported"),
    ],
    ids=["layers", "scale", "null", "dora"],
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
