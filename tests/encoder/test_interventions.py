"""Token Prepending and Contrastive Prompting; the oracle walks over the blocks by hand."""

import functools
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from sempa_mlx.config import LoraConfig
from sempa_mlx.encoder import interventions
from sempa_mlx.encoder.batch import Batch
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.interventions import Parameters, random_state
from sempa_mlx.encoder.methods import METHODS
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.errors import ModelError, UsageError
from sempa_mlx.model.lora import attach
from tests.encoder.oracle import one_by_one
from tests.tiny import SHARING, move_adapter, tiny_loaded

FEW = settings(max_examples=25, deadline=None, derandomize=True)
TEXTS = ["A cat sleeps on the warm stone.", "", "Two dogs run", 'He said "no" and left the house']
DEPTH = 6
loaded_of = functools.cache(tiny_loaded)


def encoder_of(method, kind="llama", depth=DEPTH, **changes):
    loaded = loaded_of(kind, num_hidden_layers=depth)
    return Encoder(loaded, EncoderSettings(method=method, **changes))


def put_adapter(loaded, **lora):
    attach(loaded.model, LoraConfig(rank=4, alpha=8.0, **lora), seed=1)
    move_adapter(loaded.model, 0.3)
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


# Several parameters at once


VARIANTS = [
    Parameters(layer=DEPTH, block=block, strength=strength)
    for block in (0, 2, 5)
    for strength in (0.25, -1.0)
]


def read_apart(encoder, variants, layers):
    """The same by an encoder for each of the variants."""
    alone = [
        Encoder(
            encoder.loaded,
            replace(encoder.settings, layer=-1, block=each.block, strength=each.strength),
        )
        for each in variants
    ]
    return np.concatenate([each.read(TEXTS, layers)[0] for each in alone])


@pytest.mark.parametrize("kind", [*SHARING, "gemma3_text"])
def test_variants_of_contrast_equal_one_at_a_time(kind):
    encoder = encoder_of("cp", kind)
    variants = VARIANTS if kind in SHARING else VARIANTS[-2:]  # see test_encoder on its windows
    layers = (1, 3, DEPTH)
    found, num_truncated = encoder.read(TEXTS, layers, variants, batch_tokens=90)
    expected = read_apart(encoder, variants, layers)
    assert found.shape == (len(variants), 3, len(TEXTS), 32)
    assert num_truncated == 0
    scale = np.abs(expected).max(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(found / scale, expected / scale, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "shares"), [*((k, True) for k in SHARING), ("gemma3_text", False)]
)
def test_variants_of_contrast_share_all_tokens_but_the_last(kind, shares, monkeypatch):
    encoder = encoder_of("cp", kind)
    passes, pooled = [], Batch.pooled
    monkeypatch.setattr(Batch, "pooled", lambda *args: passes.append(args[1]) or pooled(*args))
    encoder.read(TEXTS, (DEPTH,), VARIANTS)
    assert passes == ([1] if shares else [1, *[0] * len(VARIANTS)])


def test_variants_of_prepending_equal_one_at_a_time():
    encoder = encoder_of("tp")
    variants = [Parameters(layer=DEPTH, block=stop) for stop in (2, 4)]
    found, _ = encoder.read(TEXTS, range(DEPTH + 1), variants)
    np.testing.assert_allclose(found, read_apart(encoder, variants, range(DEPTH + 1)), atol=1e-5)


def test_a_method_without_parameters_is_the_same_in_every_variant():
    encoder = encoder_of("ke")
    found, _ = encoder.read(TEXTS, (DEPTH,), [Parameters(1), Parameters(2)])
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("name", ["cp", "tp", "mean"])
def test_grids_hold_what_models_of_any_depth_can_run(name):
    intervention = METHODS[name].intervention
    for depth in range(2, 100):
        grid = intervention.grid(depth)
        assert len(grid) == len(set(grid)) > 0
        for block, strength in grid:
            assert intervention.fault(Parameters(depth, block, strength), depth) == ""
