import functools
import math

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.config import LoraConfig
from sempa_mlx.evaluation.generation import WINDOW, text_perplexity
from sempa_mlx.model.lora import attach, dialled
from tests.tiny import MISFITS, SHARING, VOCABULARY, move_adapter, tiny_model

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
    text_perplexity(model_of("llama"), TOKENS, window=16, on_progress=done.append)
    assert done == [16, 16, 11]


def test_the_model_is_measured_as_it_is_dialled():
    base = text_perplexity(model_of("llama"), TOKENS).perplexity
    model = tiny_model("llama")
    attach(model, LoraConfig(rank=4, alpha=8.0), seed=1)
    move_adapter(model, 0.1)
    with dialled(model, 0.0):
        assert text_perplexity(model, TOKENS).perplexity == base
    assert abs(text_perplexity(model, TOKENS).perplexity - base) > 0.01 * base
