import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import activations, base, gemma2, llama, qwen2, qwen3

from sempa_mlx import runtime
from sempa_mlx.model.cpu_attention import attention
from sempa_mlx.model.cpu_functions import TWINS, use_fast_functions
from sempa_mlx.model.cpu_kernels import swiglu
from tests.tiny import tiny_model

BOTH = ["swiglu", "scaled_dot_product_attention"]
TOKENS = mx.array([[5, 9, 17, 33]])


@pytest.fixture(autouse=True)
def own_functions(monkeypatch):
    """Give every module mlx-lm's functions back, before and after."""
    for module in (llama, qwen2, qwen3):
        for name, (theirs, _) in TWINS.items():
            monkeypatch.setattr(module, name, theirs)


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(runtime, "is_gpu", lambda: False)


@pytest.mark.parametrize(("kind", "module"), [("llama", llama), ("qwen2", qwen2), ("qwen3", qwen3)])
def test_llama_like_models_in_float32_get_them(kind, module, on_cpu):
    model = tiny_model(kind)
    before = np.array(model(TOKENS))
    assert use_fast_functions(model, mx.float32) == BOTH
    assert module.swiglu is swiglu
    assert module.scaled_dot_product_attention is attention
    assert use_fast_functions(model, mx.float32) == BOTH  # twice does no harm
    np.testing.assert_allclose(np.array(model(TOKENS)), before, atol=1e-5, rtol=0)


def test_models_with_functions_of_their_own_keep_them(on_cpu):
    """Gemma 2 has another activation, and attention with bounded scores."""
    assert "swiglu" not in use_fast_functions(tiny_model("gemma2"), mx.float32)
    assert not hasattr(gemma2, "swiglu")


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_other_precisions_do_not(dtype, on_cpu):
    assert use_fast_functions(tiny_model(), dtype) == []
    assert llama.swiglu is activations.swiglu
    assert llama.scaled_dot_product_attention is base.scaled_dot_product_attention


def test_a_gpu_does_not_need_them(monkeypatch):
    monkeypatch.setattr(runtime, "is_gpu", lambda: True)
    assert use_fast_functions(tiny_model(), mx.float32) == []
    assert llama.swiglu is activations.swiglu


def test_a_function_of_someone_else_is_left_alone(monkeypatch, on_cpu):
    def other(gate, x):
        return gate * x

    monkeypatch.setattr(llama, "swiglu", other)
    assert use_fast_functions(tiny_model(), mx.float32) == ["scaled_dot_product_attention"]
    assert llama.swiglu is other


def test_a_half_precision_model_loaded_later_is_as_before(on_cpu):
    """All models of a class share its module, also those of other precisions."""
    half = tiny_model()
    half.set_dtype(mx.bfloat16)
    before = half(TOKENS)
    use_fast_functions(tiny_model(), mx.float32)
    assert mx.array_equal(half(TOKENS), before)
