"""A sparse coder as a module of sentence-transformers: its file redone by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from sempa_mlx.encoder.coder_file import write_coder
from sempa_mlx.errors import UsageError
from sempa_mlx.export.sparse_autoencoder import export_sparse_autoencoder
from tests.command import done, files_below, refused
from tests.encoder.test_sparse import make_coder, make_vectors


def codes_of(folder, vectors):
    """What the module computes, in float64: all latents less those not among the k largest."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name: each.astype(np.float64) for name, each in load_file(path_of(folder)).items()}
    latents = (vectors - weights["pre_bias"]) @ weights["decoder.linear.weight"].T
    latents += weights["latent_bias"]
    for row in latents:
        row[np.argsort(-row)[config["k"] :]] = 0
    return np.maximum(latents, 0)


def path_of(folder):
    return folder / "model.safetensors"


@pytest.mark.parametrize("seed", range(4))
def test_the_module_gives_the_coders_codes(tmp_path, seed):
    coder = make_coder(seed=seed)
    assert np.all(np.asarray(coder.scale) != 1)
    vectors = 5 * make_vectors(40, seed=seed)
    assert export_sparse_autoencoder(coder, tmp_path / "out") == tmp_path / "out"
    found, expected = codes_of(tmp_path / "out", vectors), coder.encode(vectors).toarray()
    assert np.array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_files_are_those_that_the_module_writes(tmp_path):
    export_sparse_autoencoder(make_coder(), tmp_path / "out")
    assert sorted(files_below(tmp_path / "out")) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "input_dim": 6,
        "hidden_dim": 15,
        "k": 4,
        "k_aux": 15,
        "normalize": False,
        "dead_threshold": 30,
    }
    weights = load_file(path_of(tmp_path / "out"))
    assert {name: (each.shape, str(each.dtype)) for name, each in weights.items()} == {
        "decoder.linear.weight": ((15, 6), "float32"),
        "latent_bias": ((15,), "float32"),
        "pre_bias": ((6,), "float32"),
        "stats_last_nonzero": ((15,), "int64"),
    }
    with safe_open(path_of(tmp_path / "out"), framework="numpy") as file:
        assert file.metadata()["encoder.weight"] == "decoder.linear.weight"


def test_without_a_scale_the_module_rebuilds_what_the_coder_rebuilds(tmp_path):
    scaled = make_coder()
    coder = replace(scaled, scale=scaled.scale * 0 + 1, gain=1.0)
    vectors = make_vectors()
    export_sparse_autoencoder(coder, tmp_path / "out")
    weights = load_file(path_of(tmp_path / "out"))
    rebuilt = codes_of(tmp_path / "out", vectors) @ weights["decoder.linear.weight"]
    expected = coder.decode(coder.encode(vectors))
    np.testing.assert_allclose(rebuilt + weights["pre_bias"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["fista", "lexical"])
def test_other_kinds_have_no_such_module(tmp_path, kind):
    coder = make_coder(kind)
    with pytest.raises(UsageError, match=f"this coder is of kind {kind}"):
        export_sparse_autoencoder(coder, tmp_path / "out")
    write_coder(tmp_path / "c.safetensors", coder)
    arguments = ("--coder", tmp_path / "c.safetensors", "--out", tmp_path / "out")
    outcome = refused(2, "export", "--to", "sparse-autoencoder", *arguments)
    assert f"of kind {kind}" in outcome.errors[0]
    assert sorted(files_below(tmp_path)) == ["c.safetensors"]


def test_the_command_writes_the_folder(tmp_path):
    coder = make_coder()
    write_coder(tmp_path / "c.safetensors", coder)
    arguments = ("--coder", tmp_path / "c.safetensors", "--out", tmp_path / "out")
    outcome = done("export", "--to", "sparse-autoencoder", *arguments)
    assert outcome.out == f"{tmp_path / 'out'}\n"
    assert "SparseAutoEncoder.load" in outcome.err
    vectors = make_vectors()
    found = codes_of(tmp_path / "out", vectors)
    np.testing.assert_allclose(found, coder.encode(vectors).toarray(), rtol=1e-4, atol=1e-5)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    write_coder(tmp_path / "c.safetensors", make_coder())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("precious")
    arguments = ("--coder", tmp_path / "c.safetensors", "--out", tmp_path / "out")
    outcome = refused(2, "export", "--to", "sparse-autoencoder", *arguments)
    assert "exists; choose a new folder" in outcome.errors[0]
    assert sorted(files_below(tmp_path / "out")) == ["file"]


def test_a_coder_is_needed(tmp_path):
    arguments = ("export", "--to", "sparse-autoencoder", "--out", tmp_path / "out")
    assert "needs a coder" in refused(2, *arguments).errors[0]
    outcome = refused(1, *arguments, "--coder", tmp_path / "none.safetensors")
    assert "no such coder" in outcome.errors[0]
    words = ("export", "--to", "mlx", "--coder", "c.safetensors", "--out", tmp_path / "out")
    assert "--coder goes with" in refused(2, *words).errors[0]
    assert files_below(tmp_path) == {}
