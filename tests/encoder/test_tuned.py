import functools
import json
import math

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.config import LoraConfig
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.interventions import Parameters
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.encoder.tuned import Trial, Tuning, with_tuned, write_tuning
from sempa_mlx.errors import ModelError, ResourceError
from sempa_mlx.model.lora import attach
from tests.tiny import tiny_loaded

CONTRAST = Parameters(layer=2, block=1, strength=0.25)
loaded_of = functools.cache(tiny_loaded)


def encoder_of(method="prompteol", **changes):
    return Encoder(loaded_of("llama"), EncoderSettings(method=method, **changes))


def tuning_of(parameters, spearman=0.8):
    best = Trial(parameters, spearman)
    other = Trial(Parameters(3, parameters.block, parameters.strength), math.nan)
    return Tuning(best, other, (best, other), pairs=9, pairs_digest="d" * 16)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tuned.json"


def test_parameters_come_back_for_the_method_they_are_of(path):
    write_tuning(path, encoder_of("cp"), tuning_of(CONTRAST))
    write_tuning(path, encoder_of("mean"), tuning_of(Parameters(1)))
    found = with_tuned(encoder_of("cp", max_tokens=99), path)
    assert found.parameters == CONTRAST
    assert found.settings.max_tokens == 99
    assert with_tuned(encoder_of("mean"), path).parameters == Parameters(1)
    assert with_tuned(encoder_of("ke"), path) is None


def test_the_file_says_how_they_were_found(path):
    write_tuning(path, encoder_of("cp"), tuning_of(CONTRAST))
    document = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert document["model"]["fingerprint"] == loaded_of("llama").fingerprint
    (entry,) = document["tuned"]
    best = {"layer": 2, "block": 1, "strength": 0.25, "spearman": 80.0}
    default = best | {"layer": 3, "spearman": None}
    assert entry == {
        "method": "cp",
        "adapter": None,
        "adapter_scale": 0.0,
        **best,
        "default": default,
        "dev_pairs": 9,
        "dev_pairs_digest": "d" * 16,
        "tried": [best, default],
    }


def test_tuning_again_takes_the_place_of_the_old_entry(path):
    write_tuning(path, encoder_of("mean"), tuning_of(Parameters(1)))
    write_tuning(path, encoder_of("mean", layer=3), tuning_of(Parameters(2)))
    assert with_tuned(encoder_of("mean"), path).parameters == Parameters(2)
    assert len(json.loads(path.read_text())["tuned"]) == 1


def test_every_adapter_and_scale_has_parameters_of_its_own(path):
    loaded = tiny_loaded()
    attach(loaded.model, LoraConfig(rank=4, alpha=8.0), seed=1)
    adapted = Encoder(loaded, EncoderSettings())
    write_tuning(path, encoder_of(), tuning_of(Parameters(1)))
    assert with_tuned(adapted, path) is None
    write_tuning(path, adapted, tuning_of(Parameters(2)))
    assert with_tuned(adapted, path).parameters == Parameters(2)
    assert with_tuned(encoder_of(), path).parameters == Parameters(1)
    assert with_tuned(adapted.with_scale(0.5), path) is None
    at_0 = with_tuned(adapted.with_scale(0.0), path)
    assert at_0.parameters == Parameters(1), "scale 0 is the base"
    layer = loaded.model.layers[0].self_attn.q_proj
    layer.lora_b = layer.lora_b + mx.array(np.float32(0.1))
    assert with_tuned(adapted, path) is None, "trained further it is another adapter"


def test_a_file_of_another_model_is_refused(path):
    write_tuning(path, encoder_of(), tuning_of(Parameters(1)))
    other = Encoder(tiny_loaded(seed=1), EncoderSettings())
    before = path.read_bytes()
    for use in (
        lambda: with_tuned(other, path),
        lambda: write_tuning(path, other, tuning_of(Parameters(2))),
    ):
        with pytest.raises(ModelError, match="tuned for another model"):
            use()
    assert path.read_bytes() == before


def test_a_missing_file_is_told_with_the_command_that_makes_it(path):
    with pytest.raises(ModelError, match="no such file") as caught:
        with_tuned(encoder_of(), path)
    assert "--tune --tuned" in caught.value.problems[0].fix


def spoil(change):
    def write(path):
        write_tuning(path, encoder_of(), tuning_of(Parameters(1)))
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return write


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text("{}"),
        spoil(lambda document: document.update(format=2)),
        spoil(lambda document: document.pop("model")),
        spoil(lambda document: document.update(tuned=[3])),
        spoil(lambda document: document["tuned"][0].pop("layer")),
        spoil(lambda document: document["tuned"][0].update(layer="1")),
        spoil(lambda document: document["tuned"][0].update(block=1.5)),
        spoil(lambda document: document["tuned"][0].update(strength="0.5")),
    ],
)
def test_files_that_make_no_sense_are_refused(path, write):
    write(path)
    with pytest.raises(ModelError, match="not a file of tuned parameters") as caught:
        with_tuned(encoder_of(), path)
    assert caught.value.problems[0].place == str(path)
    with pytest.raises(ModelError, match="not a file of tuned parameters"):
        write_tuning(path, encoder_of(), tuning_of(Parameters(2)))


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        write_tuning(tmp_path / "file" / "tuned.json", encoder_of(), tuning_of(CONTRAST))
