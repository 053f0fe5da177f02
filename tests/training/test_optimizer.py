import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from sempa_mlx.config import LoraConfig, TrainConfig
from sempa_mlx.model.lora import adapter_weights, attach
from sempa_mlx.training.optimizer import AdapterOptimizer
from tests.arrays import as_numpy, assert_equal
from tests.tiny import tiny_model

RATE = 1e-3


def fresh():
    model = tiny_model("llama", num_hidden_layers=1)
    attach(model, LoraConfig(rank=2), seed=0)
    return model


def like(model, seed):
    """Gradients for a model's adapter, drawn by the seed."""
    keys = iter(mx.random.split(mx.random.key(seed), 100))
    return tree_map(
        lambda value: mx.random.normal(value.shape, key=next(keys)), model.trainable_parameters()
    )


@pytest.mark.parametrize(("ratio", "faster"), [(1.0, 1.0), (16.0, 16.0)])
def test_b_matrices_learn_faster_with_lora_plus(ratio, faster):
    """AdamW's first step is the rate times the gradient's sign, whatever its size."""
    model = fresh()
    before = as_numpy(adapter_weights(model))
    AdapterOptimizer(TrainConfig(weight_decay=0.0), ratio).update(model, like(model, 1), RATE)
    for name, value in as_numpy(adapter_weights(model)).items():
        step = faster * RATE if name.endswith("lora_b") else RATE
        np.testing.assert_allclose(np.abs(value - before[name]), step, rtol=2e-3, err_msg=name)


@pytest.mark.parametrize("ratio", [1.0, 16.0])
def test_a_restored_optimizer_goes_on_to_the_bit(ratio):
    model = fresh()
    optimizer = AdapterOptimizer(TrainConfig(), ratio)
    for step in range(3):
        optimizer.update(model, like(model, step), RATE)
    other = fresh()
    other.load_weights(list(adapter_weights(model).items()), strict=False)
    restored = AdapterOptimizer(TrainConfig(), ratio)
    restored.restore(optimizer.state())
    for step in range(3, 6):
        optimizer.update(model, like(model, step), RATE / step)
        restored.update(other, like(model, step), RATE / step)
    assert_equal(adapter_weights(other), adapter_weights(model))
