"""Methods, layers, maps and tuned parameters on the command line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sempa_mlx.data.sts_sets import load_dev_pairs
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.fitting import default_folder, fit_after
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.evaluation.tuning import tune
from tests.command import (
    SENTENCES,
    done,
    files_below,
    refused,
    training,
    write_pairs,
    write_triplets,
)
from tests.tiny import write_tiny_folder

DEPTH = 4


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """Models, data and a finished run; tests write elsewhere."""
    folder = tmp_path_factory.mktemp("space")
    write_tiny_folder(folder / "base", num_hidden_layers=DEPTH)
    write_tiny_folder(folder / "other", seed=5, num_hidden_layers=DEPTH)
    write_tiny_folder(folder / "lfm2", "lfm2")
    write_triplets(folder / "pairs.jsonl", 60)
    write_pairs(folder / "dev.tsv")
    write_pairs(folder / "sts" / "STSB" / "test.tsv", 9)
    write_pairs(folder / "sts" / "STSB" / "dev.tsv", 12)
    (folder / "notes.txt").write_text("".join(f"{text}\n" for text in SENTENCES))
    (folder / "texts.txt").write_text("".join(f"The cat number {n} sleeps.\n" for n in range(50)))
    done(*training(folder), "--adapter-path", folder / "run")
    return folder


def embed(space, *options, model="base"):
    return ["embed", space / "notes.txt", "-o", "a.npy", "--model", space / model, *options]


def sts(space, *options):
    return ["eval", "sts", "--data", space / "sts", "--tasks", "STSB", *options]


def encoder_of(space, **changes):
    return Encoder.load(space / "base", settings=EncoderSettings(**changes))


def sidecar():
    return json.loads(Path("a.json").read_text())


@pytest.mark.parametrize("method", ["echo", "ke", "cp", "tp", "metaeol"])
def test_embed_takes_every_method_and_says_its_parameters(space, here, method):
    outcome = done(*embed(space, "--method", method))
    encoder = encoder_of(space, method=method)
    np.testing.assert_allclose(np.load("a.npy"), encoder.encode(SENTENCES), atol=1e-5)
    found = sidecar()
    assert found["method"] == method
    assert (found["layer"], found["block"]) == (encoder.parameters.layer, encoder.parameters.block)
    assert f"method {method}, " in outcome.err
    assert ("by depth, not tuned" in outcome.err) == (method in ("cp", "tp"))


@pytest.mark.parametrize("layer", [2, -2, 0])
def test_embed_reads_any_layer(space, here, layer):
    done(*embed(space, "--layer", layer))
    expected = encoder_of(space, layer=layer).encode(SENTENCES)
    np.testing.assert_allclose(np.load("a.npy"), expected, atol=1e-5)
    assert sidecar()["layer"] == layer


def test_an_adapter_is_embedded_by_another_method(space, here):
    done("embed", space / "notes.txt", "-o", "a.npy", "--adapter-path", space / "run")
    done(*embed(space, "--adapter-path", space / "run", "--method", "tp", "--force"))
    expected = Encoder.load(space / "run", settings=EncoderSettings(method="tp"))
    np.testing.assert_allclose(np.load("a.npy"), expected.encode(SENTENCES), atol=1e-5)
    names = [
        row["system"]
        for row in done(
            *sts(space, "--json", "--adapter-path", space / "run", "--no-base"),
            *["--adapter-method", "cp", "--adapter-method", "tp", "--adapter-scale", "0.5"],
        ).document["results"]
    ]
    assert names == ["run x0.5 cp", "run x0.5 tp"]


def test_a_typing_error_is_found_before_a_model_is_loaded(space, here):
    outcome = refused(2, *sts(space, "--model", "nowhere/at-all", "--method", "prompteool"))
    assert "did you mean `prompteol`" in outcome.err
    outcome = refused(2, *embed(space, "--method", "promteol"))
    assert "did you mean `prompteol`" in outcome.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--layer", "9"], 2, "layer must lie in -5 to 4, not 9"),
        (["--layer", "2", "--tuned", "t.json"], 2, "both set the layer"),
        (["--post-fit", "texts.txt"], 2, "nothing is fitted"),
        (["--post", "abt"], 2, "no post-processing `abt`"),
        (["--post", "nowhere.safetensors"], 1, "no such file"),
        (["--post", "abtt", "--post-fit", "nowhere.txt"], 3, "no such file"),
        (["--post", "abtt"], 3, "--post-fit FILE"),
        (["--tuned", "nowhere.json"], 1, "no such file"),
    ],
)
def test_what_cannot_be_is_refused(space, here, options, code, message):
    for command in (embed(space, *options), sts(space, "--model", space / "base", *options)):
        outcome = refused(code, *command)
        assert message in " ".join(outcome.err.split())
    assert files_below(here) == {}


def test_models_that_do_not_fit_are_refused(space, here):
    outcome = refused(1, *embed(space, "--method", "cp", model="lfm2"))
    assert "methods that change attention do not fit this model" in outcome.err
    done(*embed(space, "--layer", "1", model="lfm2"))


# Maps


def mapped(space, *options):
    return done(*embed(space, *options, "--force"))


@pytest.mark.parametrize("kind", ["abtt", "abtt:2", "standardize", "whiten"])
def test_a_map_is_fitted_once_and_found_again(space, here, kind):
    options = ["--post", kind, "--post-fit", space / "texts.txt"]
    first = mapped(space, *options)
    assert "fitted to 50 texts" in first.err
    encoder = encoder_of(space)
    texts = (space / "texts.txt").read_text().splitlines()
    name, _, components = kind.partition(":")
    fit, path = fit_after(
        encoder, texts, name, int(components or (name == "abtt")), folder=default_folder()
    )
    expected = Encoder(encoder.loaded, replace(encoder.settings, post=fit)).encode(SENTENCES)
    np.testing.assert_allclose(np.load("a.npy"), expected, atol=1e-4)
    assert sidecar()["post"] == fit.describe()
    before = Path("a.npy").read_bytes()
    mapped(space, "--post", path)
    np.testing.assert_allclose(np.load("a.npy"), expected, atol=1e-4)
    assert sidecar()["post"]["fit"] == fit.digest
    mapped(space, *options)
    assert Path("a.npy").read_bytes() == before


def test_anchors_of_preference_files_are_texts_as_well(space, here):
    mapped(space, "--post", "abtt", "--post-fit", space / "pairs.jsonl")
    from_anchors = np.load("a.npy")
    anchors = [
        json.loads(line)["anchor"] for line in (space / "pairs.jsonl").read_text().splitlines()
    ]
    Path("anchors.txt").write_text("".join(f"{anchor}\n" for anchor in anchors))
    mapped(space, "--post", "abtt", "--post-fit", "anchors.txt")
    np.testing.assert_array_equal(np.load("a.npy"), from_anchors)


def test_a_map_of_other_vectors_is_refused(space, here):
    _, path = fit_after(
        encoder_of(space),
        [f"{n} cats" for n in range(9)],
        *("abtt", 1),
        folder=Path("fits"),
    )
    message = "the fitted abtt belongs to other vectors"
    for options in (["--method", "mean"], ["--layer", "2"], ["--adapter-path", space / "run"]):
        assert message in refused(2, *embed(space, "--post", path, *options)).err
    assert message in refused(2, *embed(space, "--post", path, model="other")).err


def test_systems_get_maps_of_their_own(space, here):
    results = done(
        *sts(space, "--json", "--adapter-path", space / "run", "--post", "abtt"),
        *["--post-fit", space / "texts.txt", "--method", "prompteol", "--method", "mean"],
    ).document["results"]
    assert [row["system"] for row in results] == [
        "base prompteol abtt",
        "base mean abtt",
        "run prompteol abtt",
    ]
    fits = {row["encoder"]["post"]["fit"] for row in results}
    assert len(fits) == 3


# Tuning


def test_tuned_parameters_are_found_used_and_used_again(space, here):
    command = sts(space, "--json", "--model", space / "base", "--method", "cp", "--method", "mean")
    results = done(*command, "--tune", "--tuned", "t.json").document["results"]
    assert [row["system"] for row in results] == ["base cp tuned", "base mean tuned"]
    pairs = load_dev_pairs(space / "sts" / "STSB" / "dev.tsv", None)
    best = tune(encoder_of(space, method="cp"), pairs).best.parameters
    found = results[0]["encoder"]
    expected = (best.layer, best.block, best.strength)
    assert (found["layer"], found["block"], found["strength"]) == expected
    again = done(*command, "--tuned", "t.json").document["results"]
    assert [row["scores"] for row in again] == [row["scores"] for row in results]
    done(*embed(space, "--method", "cp", "--tuned", "t.json"))
    vectors = encoder_of(
        space, method="cp", layer=best.layer, block=best.block, strength=best.strength
    ).encode(SENTENCES)
    np.testing.assert_allclose(np.load("a.npy"), vectors, atol=1e-5)


def test_tuning_tells_what_it_found(space, here):
    outcome = done(*sts(space, "--model", space / "base", "--tune", "--tune-pairs", "8"))
    assert "base prompteol: STS-B dev " in outcome.err
    assert "(default)" in outcome.err
    assert "5 tried on 8 pairs" in outcome.err
    assert "tuned parameters: tuned.json" in outcome.err
    (entry,) = json.loads(Path("tuned.json").read_text())["tuned"]
    assert entry["dev_pairs"] == 8


def test_methods_that_are_not_in_the_file_keep_their_defaults_with_a_warning(space, here):
    done(*sts(space, "--model", space / "base", "--tune", "--tuned", "t.json"))
    outcome = done(*embed(space, "--method", "ke", "--tuned", "t.json"))
    assert "nothing is tuned for it in t.json" in outcome.err
    np.testing.assert_allclose(
        np.load("a.npy"), encoder_of(space, method="ke").encode(SENTENCES), atol=1e-5
    )


def test_parameters_of_another_model_are_refused(space, here):
    done(*sts(space, "--model", space / "base", "--tune", "--tuned", "t.json"))
    before = Path("t.json").read_bytes()
    options = ["--tuned", "t.json"]
    assert "tuned for another model" in refused(1, *embed(space, *options, model="other")).err
    command = sts(space, "--model", space / "other", "--tune", *options)
    assert "tuned for another model" in refused(1, *command).err
    assert Path("t.json").read_bytes() == before


def test_adapters_are_tuned_beside_the_base(space, here):
    results = done(
        *sts(space, "--json", "--adapter-path", space / "run", "--tune", "--tuned", "t.json")
    ).document["results"]
    assert [row["system"] for row in results] == ["base prompteol tuned", "run prompteol tuned"]
    adapters = [entry["adapter"] for entry in json.loads(Path("t.json").read_text())["tuned"]]
    assert adapters[0] is None
    assert len(adapters[1]) == 16


def test_tuning_needs_the_dev_set(space, here):
    write_pairs(here / "sts" / "STSB" / "test.tsv")
    command = ["eval", "sts", "--data", "sts", "--tasks", "STSB", "--model", space / "base"]
    assert "no dev set of STS-B" in refused(3, *command, "--tune").err


def test_a_layer_cannot_be_given_and_tuned(space, here):
    command = sts(space, "--model", space / "base", "--tune", "--layer", "2")
    assert "both set the layer" in refused(2, *command).err
