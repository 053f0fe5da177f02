"""Tuning against the plain way: one encoder a combination, all of them scored one by one."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest

from sempa_mlx.config import LoraConfig
from sempa_mlx.data.records import StsPair, StsTask
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.interventions import Parameters
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.encoder.tuned import Trial
from sempa_mlx.evaluation import tuning
from sempa_mlx.evaluation.sts import evaluate_sts
from sempa_mlx.evaluation.tuning import tune
from sempa_mlx.model.lora import attach
from tests.tiny import move_adapter, tiny_loaded

PAIRS = tuple(
    StsPair(float(score), f"A {left} {verb}.", f"The {right} {verb} on the grass")
    for score, (left, right, verb) in enumerate(
        [
            *[("dog", "cat", "runs"), ("dog", "dog", "runs"), ("man", "woman", "reads")],
            *[("cat", "stone", "sleeps"), ("dog", "man", "sleeps"), ("man", "man", "plays")],
            *[("woman", "dog", "sings"), ("stone", "stone", "falls"), ("boy", "girl", "eats")],
        ]
    )
)
DEPTH = 4
LORA = LoraConfig(rank=4, alpha=8.0)
loaded_of = functools.cache(tiny_loaded)


def encoder_of(method, **changes):
    loaded = loaded_of("llama", num_hidden_layers=DEPTH)
    return Encoder(loaded, EncoderSettings(method=method, **changes))


def score_alone(encoder, parameters):
    changes = {name: getattr(parameters, name) for name in ("layer", "block", "strength")}
    alone = Encoder(encoder.loaded, replace(encoder.settings, **changes))
    return evaluate_sts(alone, [StsTask("dev", "senteval", PAIRS)])[0].spearman


@pytest.mark.parametrize("method", ["prompteol", "mean", "cp", "tp"])
def test_scores_are_those_of_each_combination_alone(method):
    encoder = encoder_of(method)
    found = tune(encoder, PAIRS)
    for trial in found.tried:
        assert trial.spearman == pytest.approx(score_alone(encoder, trial.parameters), nan_ok=True)
    assert found.best.spearman == np.nanmax([trial.spearman for trial in found.tried])
    assert found.best in found.tried
    assert found.pairs == len(PAIRS)


@pytest.mark.parametrize("method", ["prompteol", "ke", "cp", "tp"])
def test_the_default_is_among_what_is_tried(method):
    encoder = encoder_of(method)
    found = tune(encoder, PAIRS)
    assert found.default in found.tried
    expected = encoder.parameters
    assert found.default.parameters == replace(expected, layer=expected.index(DEPTH))


def test_every_layer_is_tried_once_with_every_variant():
    tried = [trial.parameters for trial in tune(encoder_of("prompteol"), PAIRS).tried]
    assert tried == [Parameters(layer) for layer in range(DEPTH + 1)]
    contrast = [trial.parameters for trial in tune(encoder_of("cp"), PAIRS).tried]
    assert len(contrast) == len(set(contrast))
    assert all(each.layer > each.block for each in contrast)
    assert {each.strength for each in contrast} == {0.25, 0.5, 1.0}


def test_the_encoders_own_layer_does_not_count():
    assert tune(encoder_of("mean", layer=1), PAIRS) == tune(encoder_of("mean"), PAIRS)


def test_chunks_of_pairs_change_nothing(monkeypatch):
    encoder, seen = encoder_of("prompteol"), []
    whole = tune(encoder, PAIRS, on_progress=seen.append)
    assert seen == [len(PAIRS)]
    monkeypatch.setattr(tuning, "MEMORY", 0)
    seen.clear()
    parts = tune(encoder, PAIRS, on_progress=seen.append)
    assert seen == [8, len(PAIRS) - 8]
    for left, right in zip(whole.tried, parts.tried, strict=True):
        assert left.parameters == right.parameters
        assert left.spearman == pytest.approx(right.spearman, nan_ok=True)


def test_equal_scores_go_to_the_later_layer_and_undefined_ones_lose(monkeypatch):
    scores = iter([0.5, math.nan, 0.7, 0.7, math.nan])
    monkeypatch.setattr(tuning, "spearman", lambda gold, predicted: next(scores))
    found = tune(encoder_of("prompteol"), PAIRS)
    assert found.best == Trial(Parameters(3), 0.7)
    monkeypatch.setattr(tuning, "spearman", lambda gold, predicted: math.nan)
    assert tune(encoder_of("prompteol"), PAIRS).best.parameters == Parameters(DEPTH)


def test_the_digest_tells_pairs_apart():
    found = tune(encoder_of("mean"), PAIRS).pairs_digest
    assert found == tune(encoder_of("prompteol"), PAIRS).pairs_digest
    assert found != tune(encoder_of("mean"), PAIRS[::-1]).pairs_digest


def test_an_adapter_is_tuned_as_it_is_dialled():
    loaded = tiny_loaded(num_hidden_layers=DEPTH)
    base = tune(Encoder(loaded, EncoderSettings()), PAIRS)
    attach(loaded.model, LORA, seed=1)
    move_adapter(loaded.model, 0.3)
    encoder = Encoder(loaded, EncoderSettings())
    off = tune(encoder.with_scale(0.0), PAIRS)
    assert [repr(trial) for trial in off.tried] == [repr(trial) for trial in base.tried]
    found = tune(encoder.with_scale(0.5), PAIRS)
    scores = [trial.spearman for trial in found.tried]
    assert scores != [trial.spearman for trial in base.tried]
    alone = [score_alone(encoder.with_scale(0.5), trial.parameters) for trial in found.tried]
    np.testing.assert_allclose(scores, alone, atol=1e-9)
