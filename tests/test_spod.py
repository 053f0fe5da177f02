"""Training with a sparse coder: fitted afterwards, or beside the adapter."""

import shutil

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.encoder.coder_file import CODER_FILE, read_coder, read_examples
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.sparse_embed import Coding
from sempa_mlx.run.resume import resume
from tests.arrays import assert_equal
from tests.command import (
    done,
    files_below,
    metrics_of,
    prepared,
    refused,
    training,
    write_inputs,
)
from tests.tiny import write_tiny_folder

SENTENCES = ["Cat 3 is asleep.", "The dog 4 runs on the grass."]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache):
    """A model, rows, dev pairs, and coders of the untrained model."""
    folder = write_inputs(tmp_path_factory.mktemp("spod"), num_hidden_layers=1)
    for kind in ("topk", "lexical"):
        arguments = ("--model", folder / "base", "--data", folder / "pairs.jsonl", "--coder", kind)
        sizes = ("--k", 4, "--hidden", 40, "--epochs", 2)
        done("sparse", "fit", *arguments, *sizes, "--out", folder / f"{kind}.safetensors")
    return folder


def joint(folder, *sets):
    """Settings of a joint run, `sets` before the usual ones."""
    usual = {
        "objective.loss": "sigmoid + 0.5 code",
        "sparse.start": folder / "topk.safetensors",
        "sparse.k": 4,
        "eval.dial": "null",
    }
    found = dict(each.split("=", 1) for each in sets)
    return tuple(f"{name}={value}" for name, value in (usual | found).items())


@pytest.mark.parametrize("kind", ["topk", "fista", "lexical"])
def test_a_coder_is_fitted_to_what_was_trained(folder, tmp_path, kind):
    sets = (f"sparse.coder={kind}", "sparse.k=4", "sparse.hidden=40", "sparse.epochs=2")
    outcome = done("--json", *training(folder, *sets), "--adapter-path", tmp_path / "run")
    assert outcome.document["coder"]["kind"] == kind
    assert outcome.document["coder"]["num_texts"] == 36
    encoder = Encoder.load(tmp_path / "run")
    coding = Coding.open(encoder, tmp_path / "run")
    codes, _ = coding.encode(SENTENCES)
    assert codes.nnz
    assert (np.diff(codes.indptr) <= 4).all()
    assert read_examples(tmp_path / "run")


def test_fitting_afterwards_leaves_the_adapter_as_it_would_be(folder, tmp_path):
    sets = ("sparse.k=4", "sparse.hidden=40", "sparse.epochs=2")
    done(*training(folder, *sets, "sparse.coder=topk"), "--adapter-path", tmp_path / "with")
    done(*training(folder, *sets), "--adapter-path", tmp_path / "without")
    files = [tmp_path / name / "adapters.safetensors" for name in ("with", "without")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (tmp_path / "without" / CODER_FILE).exists()


def test_the_next_command_shows_how_to_make_codes(folder, tmp_path):
    sets = ("sparse.coder=topk", "sparse.k=4", "sparse.hidden=40")
    outcome = done(*training(folder, *sets), "--adapter-path", tmp_path / "run")
    assert f"--sparse {tmp_path / 'run'}" in outcome.err
    assert "of the variance unexplained" in outcome.err


def test_a_coder_trained_beside_the_adapter_is_written_beside_it(folder, tmp_path):
    """The loss on the training rows themselves falls, so the last step is kept."""
    held_out = ("eval.metric=loss", f"data.dev={folder / 'pairs.jsonl'}")
    done(*training(folder, *joint(folder, *held_out)), "--adapter-path", tmp_path / "run")
    kept = mx.load(str(tmp_path / "run" / "adapters.safetensors"))
    assert {name.rpartition(".")[2] for name in kept} == {"lora_a", "lora_b"}
    coder, before = (read_coder(path) for path in (tmp_path / "run", folder / "topk.safetensors"))
    encoder = Encoder.load(tmp_path / "run")
    assert coder.vectors == encoder.vectors_key
    assert (coder.kind, coder.k, coder.num_texts) == ("topk", 4, 12)
    assert np.abs(coder.atoms - before.atoms).max() > 1e-3, "it has learned"
    assert np.abs(coder.centre - before.centre).max() > 1e-4
    np.testing.assert_array_equal(coder.scale, before.scale)
    steps = [line for line in metrics_of(tmp_path / "run") if "loss" in line]
    assert all(line["loss/code"] > 0 for line in steps)
    assert all(
        line["loss"] == pytest.approx(line["loss/preference"] + line["loss/code"]) for line in steps
    )
    outcome = done("embed", *_embedding(folder, tmp_path))
    assert outcome.code == 0


def _embedding(folder, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("".join(f"{text}\n" for text in SENTENCES))
    run = tmp_path / "run"
    return (notes, "--adapter-path", run, "--sparse", run, "--out", tmp_path / "codes.npz")


def test_detached_the_adapter_learns_as_if_there_were_no_coder(folder, tmp_path):
    sets = joint(folder, "sparse.detach=true", "train.clip=1e9")
    beside = prepared(folder, f"output.path={tmp_path / 'beside'}", *sets)
    plain = prepared(
        folder, f"output.path={tmp_path / 'plain'}", "eval.dial=null", "train.clip=1e9"
    )
    list(plain.events())
    list(beside.events())
    for name in plain.best_weights:
        found = np.array(dict(beside.best_weights)[name])
        np.testing.assert_allclose(found, np.array(plain.best_weights[name]), atol=1e-6)
    assert not np.array_equal(
        np.array(beside.coder.atoms), read_coder(folder / "topk.safetensors").atoms
    )


def test_a_joint_run_goes_on_to_the_bit(folder, tmp_path):
    def run_in(place):
        sets = joint(folder, "train.iters=4", "train.batch_size=3", "output.save_every=1")
        return prepared(folder, f"output.path={place}", *sets)

    whole = run_in(tmp_path / "whole")
    list(whole.events())
    stopped = run_in(tmp_path / "stopped")
    list(stopped.events(lambda: stopped.progress.step == 2))
    again = run_in(tmp_path / "stopped")
    resume(again)
    list(again.events())
    assert again.progress == whole.progress
    assert_equal(
        dict(again.loaded.model.trainable_parameters()["sparse_coder"]),
        dict(whole.loaded.model.trainable_parameters()["sparse_coder"]),
    )
    files = [tmp_path / name / CODER_FILE for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_does_not_go_on_from_another_start(folder, tmp_path):
    shutil.copy(folder / "topk.safetensors", tmp_path / "start.safetensors")
    sets = joint(folder, f"sparse.start={tmp_path / 'start.safetensors'}", "output.save_every=1")
    run = training(folder, *sets)
    done(*run, "--adapter-path", tmp_path / "run")
    arguments = ("--model", folder / "base", "--data", folder / "pairs.jsonl", "--seed", 5)
    sizes = ("--k", 4, "--hidden", 40, "--epochs", 1, "--force")
    done("sparse", "fit", *arguments, *sizes, "--out", tmp_path / "start.safetensors")
    before = files_below(tmp_path / "run")
    outcome = refused(2, *run, "--adapter-path", tmp_path / "run", "--resume")
    assert "coder to start from" in outcome.err
    assert files_below(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        (("sparse.start=null",), ["needs a coder to start from"]),
        (("eval.dial=[0.5]",), ["knows it at scale 1 only"]),
        (("sparse.coder=topk",), ["would replace it"]),
        (
            ("sparse.start=null", "eval.dial=[0.5]", "sparse.coder=fista"),
            ["needs a coder", "scale 1 only", "would replace it"],
        ),
        (("objective.loss=sigmoid",), ["read by the loss's term `code` only"]),
    ],
)
def test_settings_that_do_not_go_with_the_term_are_named(folder, tmp_path, changes, faults):
    sets = joint(folder, *changes)
    outcome = refused(2, *training(folder, *sets), "--adapter-path", tmp_path / "run")
    assert len(outcome.errors) == len(faults)
    for fault in faults:
        assert fault in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_start_that_does_not_fit_is_refused(folder, tmp_path):
    def with_start(path, *more):
        sets = joint(folder, f"sparse.start={path}", *more)
        return (*training(folder, *sets), "--adapter-path", tmp_path / "run")

    lexical = refused(1, *with_start(folder / "lexical.safetensors"))
    assert "a lexical coder cannot be trained" in lexical.err
    assert "no such coder" in refused(1, *with_start(tmp_path / "nowhere.safetensors")).err
    write_tiny_folder(tmp_path / "other", seed=9, num_hidden_layers=1)
    arguments = ("--model", tmp_path / "other", "--data", folder / "pairs.jsonl")
    other = tmp_path / "other.safetensors"
    done("sparse", "fit", *arguments, "--k", 4, "--hidden", 40, "--epochs", 1, "--out", other)
    assert "other vectors than the untrained base's" in refused(1, *with_start(other)).err
    large = refused(2, *with_start(folder / "topk.safetensors", "sparse.k=41"))
    assert "41" in large.err
