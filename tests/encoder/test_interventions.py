"""Token Prepending and Contrastive Prompting; the oracle walks over the blocks by hand."""

import functools

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from sempa_mlx.config import LoraConfig
from sempa_mlx.encoder import interventions
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.interventions import random_state
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.errors import ModelError, UsageError
from sempa_mlx.model.lora import adapter_weights, attach
from tests.encoder.oracle import one_by_one
from tests.tiny import SHARING, tiny_loaded

FEW = settings(max_examples=25, deadline=None, derandomize=True)
TEXTS = ["A cat sleeps on the warm stone.", "", "Two dogs run", 'He said "no" and left the house']
DEPTH = 6
loaded_of = functools.cache(tiny_loaded)


def encoder_of(method, kind="llama", depth=DEPTH, **changes):
    loaded = loaded_of(kind, num_hidden_layers=depth)
    return Encoder(loaded, EncoderSettings(method=method, **changes))


def put_adapter(loaded, **lora):
    attach(loaded.model, LoraConfig(rank=4, alpha=8.0, **lora), seed=1)
    for index, (name, value) in enumerate(adapter_weights(loaded.model).items()):
        if name.endswith("lora_b"):
            noise = 0.3 * mx.random.normal(value.shape, key=mx.random.key(index))
            loaded.model.load_weights([(name, noise)], strict=False)
    return loaded


def assert_as_by_hand(encoder, texts=TEXTS):
    expected = [one_by_one(encoder, text) for text in texts]
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=2e-5)


@FEW
@given(
    block=st.integers(0, DEPTH - 1),
    strength=st.floats(-2, 2, width=16),
    above=st.integers(1, DEPTH),
    batch_tokens=st.integers(1, 200),
    kind=st.sampled_from(SHARING),
)
def test_contrast_at_any_block_and_strength(block, strength, above, batch_tokens, kind):
    encoder = encoder_of(
        "cp", kind, block=block, strength=strength, layer=min(block + above, DEPTH)
    )
    found = encoder.encode(TEXTS, batch_tokens=batch_tokens)
    np.testing.assert_allclose(found, [one_by_one(encoder, t) for t in TEXTS], atol=2e-5)


@FEW
@given(
    stop=st.integers(2, DEPTH),
    layer=st.integers(2, DEPTH),
    batch_tokens=st.integers(1, 200),
    kind=st.sampled_from(SHARING),
)
def test_prepending_up_to_any_block(stop, layer, batch_tokens, kind):
    encoder = encoder_of("tp", kind, block=stop, layer=layer)
    found = encoder.encode(TEXTS, batch_tokens=batch_tokens)
    np.testing.assert_allclose(found, [one_by_one(encoder, t) for t in TEXTS], atol=2e-5)


@pytest.mark.parametrize("method", ["cp", "tp"])
@pytest.mark.parametrize("kind", SHARING)
def test_sharing_the_prefix_changes_nothing(method, kind):
    sharing, apart = encoder_of(method, kind), encoder_of(method, kind)
    apart._reader._can_share = False
    np.testing.assert_allclose(sharing.encode(TEXTS), apart.encode(TEXTS), atol=2e-5)
    assert sharing._reader._can_share


def test_the_placeholder_is_never_part_of_the_shared_prefix(monkeypatch):
    """A lone text shares all its tokens but the last with itself."""
    encoder = encoder_of("tp")
    seen, read = [], encoder._reader.read

    def watch(rows, layers, *, most_shared, make_taps):
        found = read(rows, layers, most_shared=most_shared, make_taps=make_taps)
        seen.append(found.positions.shared)
        return found

    monkeypatch.setattr(encoder._reader, "read", watch)
    encoder.encode(TEXTS[:1])
    assert seen == [encoder._shapes[0].placeholder]


@pytest.mark.parametrize("method", ["cp", "tp"])
def test_parameters_matter(method):
    changes = {"cp": [{"block": 2}, {"strength": 0.25}], "tp": [{"block": 4}]}[method]
    before = encoder_of(method).encode(TEXTS)
    for change in [*changes, {"layer": -1}]:
        assert np.abs(encoder_of(method, **change).encode(TEXTS) - before).max() > 1e-2


def test_strength_0_takes_the_attention_of_the_last_token_away():
    """Then the auxiliary prompt does not matter, as A - B is multiplied by 0."""
    silent = encoder_of("cp", strength=0.0)
    assert_as_by_hand(silent)


def test_the_first_state_of_the_placeholder_is_always_the_same(monkeypatch):
    before = encoder_of("tp").encode(TEXTS)
    mx.random.seed(99)
    np.random.seed(99)  # noqa: NPY002 - others' global state must not matter
    random_state.cache_clear()
    np.testing.assert_array_equal(encoder_of("tp").encode(TEXTS), before)
    monkeypatch.setattr(interventions, "PLACEHOLDER_SEED", 1)
    random_state.cache_clear()
    assert np.abs(encoder_of("tp").encode(TEXTS) - before).max() > 1e-3
    monkeypatch.undo()
    random_state.cache_clear()


@pytest.mark.parametrize("method", ["cp", "tp", "echo", "metaeol", "ke"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_work_with_every_method(method, kind):
    loaded = put_adapter(tiny_loaded(), kind=kind)
    encoder = Encoder(loaded, EncoderSettings(method=method, layer=-1))
    assert_as_by_hand(encoder)
    base = Encoder(loaded_of("llama"), EncoderSettings(method=method, layer=-1)).encode(TEXTS)
    np.testing.assert_array_equal(encoder.with_scale(0.0).encode(TEXTS), base)
    assert np.abs(encoder.encode(TEXTS) - base).max() > 1e-2


@pytest.mark.parametrize("method", ["prompteol", "echo", "pretcot", "prompteol-icl", "tp"])
def test_methods_of_one_prompt_have_gradients(method):
    loaded = put_adapter(tiny_loaded(num_hidden_layers=4))
    encoder = Encoder(loaded, EncoderSettings(method=method, normalize=False))
    rows = encoder.tokenize(TEXTS)
    np.testing.assert_allclose(np.array(encoder.pooled(rows)), encoder.encode(TEXTS), atol=1e-4)
    gradients = nn.value_and_grad(loaded.model, lambda _: (encoder.pooled(rows) ** 2).sum())(
        loaded.model
    )[1]
    flat = dict(tree_flatten(gradients))
    assert mx.abs(flat["model.layers.0.self_attn.v_proj.lora_a"]).max() > 1e-3


@pytest.mark.parametrize("method", ["cp", "metaeol"])
def test_methods_of_several_prompts_have_no_single_row(method):
    with pytest.raises(UsageError, match="more than one prompt"):
        encoder_of(method).tokenize(TEXTS)


@pytest.mark.parametrize("method", ["cp", "tp"])
def test_models_without_attention_everywhere_are_refused(method):
    with pytest.raises(ModelError, match="methods that change attention do not fit this model"):
        Encoder(loaded_of("lfm2"), EncoderSettings(method=method))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("method", ["cp", "tp", "echo"])
def test_half_precision_keeps_its_type_and_comes_close(dtype, method):
    loaded = tiny_loaded("qwen3")
    exact = Encoder(loaded, EncoderSettings(method=method, layer=-1)).encode(TEXTS[:1])
    loaded.model.set_dtype(dtype)
    loaded.dtype = dtype
    encoder = Encoder(loaded, EncoderSettings(method=method, layer=-1))
    found = encoder.encode(TEXTS[:1])
    assert found.dtype == np.float32
    assert float((found * exact).sum()) > 0.98
