import functools
import math

import mlx.core as mx
import numpy as np
import pytest
from scipy.special import log_softmax

from sempa_mlx.evaluation.generation import WINDOW, text_drift, text_perplexity
from sempa_mlx.model.lora import dialled
from tests.tiny import MISFITS, SHARING, VOCABULARY, put_adapter, tiny_model

TOKENS = [int(token) for token in np.random.default_rng(0).integers(1, VOCABULARY, 43)]

model_of = functools.cache(tiny_model)


def naive(model, tokens, window):
    """Whole logits of each window in numpy, double precision; returns (sum of nats, tokens)."""
    total, count = 0.0, 0
    for start in range(0, len(tokens), window):
        chunk = tokens[start : start + window]
        logits = np.array(model(mx.array([chunk])), dtype=np.float64)[0]
        for place in range(len(chunk) - 1):
            row = logits[place]
            total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[chunk[place + 1]]
            count += 1
    return total, count


@pytest.mark.parametrize("kind", [*SHARING, *MISFITS])
@pytest.mark.parametrize("window", [2, 16, 43, 100])
def test_perplexity_equals_a_naive_forward(kind, window):
    found = text_perplexity(model_of(kind), TOKENS, window=window)
    total, count = naive(model_of(kind), TOKENS, window)
    assert found.num_scored == count
    assert found.num_tokens == 43
    assert math.log(found.perplexity) == pytest.approx(total / count, abs=1e-4)


@pytest.mark.parametrize(
    ("length", "scored"),
    [
        (0, 0),  # nothing
        (1, 0),  # one token has no context
        (2, 1),
        (16, 15),  # one full window
        (17, 15),  # a window of one token is left out
        (18, 16),
        (32, 30),
    ],
)
def test_the_first_token_of_each_window_is_not_scored(length, scored):
    found = text_perplexity(model_of("llama"), TOKENS[:length], window=16)
    assert (found.num_tokens, found.num_scored) == (length, scored)
    assert math.isnan(found.perplexity) == (scored == 0)


def test_the_default_window_is_applied():
    tokens = TOKENS * 13  # 559
    assert WINDOW < len(tokens) < 2 * WINDOW
    found = text_perplexity(model_of("llama"), tokens)
    assert found.num_scored == len(tokens) - 2
    total, count = naive(model_of("llama"), tokens, WINDOW)
    assert math.log(found.perplexity) == pytest.approx(total / count, abs=1e-4)


def test_a_model_that_knows_nothing_is_as_perplexed_as_there_are_tokens():
    model = tiny_model("llama")
    model.model.embed_tokens.weight = mx.zeros_like(model.model.embed_tokens.weight)
    assert text_perplexity(model, TOKENS).perplexity == pytest.approx(VOCABULARY, rel=1e-5)


def test_progress_counts_every_token():
    done = []
    text_perplexity(model_of("llama"), TOKENS, window=16, batch_tokens=32, on_progress=done.append)
    assert done == [32, 11]


@pytest.mark.parametrize("kind", [*SHARING, *MISFITS])
@pytest.mark.parametrize("batch_tokens", [1, 16, 47, 48, 1000])
def test_values_do_not_depend_on_how_many_windows_run_together(kind, batch_tokens):
    one = text_perplexity(model_of(kind), TOKENS, window=16, batch_tokens=1)
    found = text_perplexity(model_of(kind), TOKENS, window=16, batch_tokens=batch_tokens)
    assert (found.num_tokens, found.num_scored) == (43, 40)
    assert found.perplexity == pytest.approx(one.perplexity, rel=1e-5)
    assert found.standard_error == pytest.approx(one.standard_error, rel=1e-4)


def test_the_standard_error_is_that_of_windows_as_the_sample():
    model = model_of("llama")
    found = text_perplexity(model, TOKENS, window=16)
    parts = [naive(model, TOKENS[start : start + 16], 16) for start in (0, 16, 32)]
    total, count = naive(model, TOKENS, 16)
    residuals = [nats - total / count * size for nats, size in parts]
    of_mean = math.sqrt(3 / 2 * sum(residual**2 for residual in residuals)) / count
    expected = math.exp(total / count) * of_mean
    assert found.standard_error == pytest.approx(expected, rel=1e-4)


def test_one_window_has_no_standard_error():
    assert math.isnan(text_perplexity(model_of("llama"), TOKENS).standard_error)


@functools.cache
def adapted(kind="llama"):
    """A model whose adapter changes what it says."""
    model = tiny_model(kind)
    put_adapter(model)
    return model


def test_the_model_is_measured_as_it_is_dialled():
    base = text_perplexity(model_of("llama"), TOKENS).perplexity
    with dialled(adapted(), 0.0):
        assert text_perplexity(adapted(), TOKENS).perplexity == base
    assert abs(text_perplexity(adapted(), TOKENS).perplexity - base) > 0.01 * base


# Along the dial


def naive_kl(model, tokens, window, scale):
    """KL(base || model) of every scored token from whole logits in numpy; (sum, tokens)."""
    found = []
    for start in range(0, len(tokens), window):
        inputs = mx.array([tokens[start : start + window]])
        with dialled(model, 0.0):
            base = log_softmax(np.array(model(inputs), np.float64)[0, :-1], axis=1)
        with dialled(model, scale):
            ours = log_softmax(np.array(model(inputs), np.float64)[0, :-1], axis=1)
        found += list((np.exp(base) * (base - ours)).sum(axis=1))
    return sum(found), len(found)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "lfm2"])
@pytest.mark.parametrize("scale", [0.5, 1.0, 1.25])
def test_kl_equals_a_naive_sum_over_the_vocabulary(kind, scale):
    (found,) = text_drift(adapted(kind), TOKENS, [scale], window=16)
    total, count = naive_kl(adapted(kind), TOKENS, 16, scale)
    assert found.kl.count == count == found.perplexity.num_scored
    assert found.kl.value == pytest.approx(total / count, rel=1e-3)
    assert found.kl.value > 1e-4
    assert found.kl.standard_error > 0


def test_each_scale_has_the_perplexity_it_has_alone():
    scales = [1.0, 0.0, 0.5]
    done = []
    found = text_drift(adapted(), TOKENS, scales, window=16, on_progress=done.append)
    assert [drift.scale for drift in found] == scales
    for drift in found:
        with dialled(adapted(), drift.scale):
            assert drift.perplexity == text_perplexity(adapted(), TOKENS, window=16)
    assert done == 3 * [len(TOKENS)]
    on, off, half = (drift.kl.value for drift in found)
    assert off == 0.0
    assert 0 < half < on


def test_at_zero_the_base_is_not_moved_at_all():
    for model in (adapted(), model_of("llama")):  # an adapter that is off, and none
        (found,) = text_drift(model, TOKENS, [0.0], window=16)
        assert (found.kl.value, found.kl.standard_error) == (0.0, 0.0)


def test_a_model_without_adapter_is_its_own_base_at_every_scale():
    (found,) = text_drift(model_of("llama"), TOKENS, [1.0], window=16)
    assert found.kl.value == 0.0
