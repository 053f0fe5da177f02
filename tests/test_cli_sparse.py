"""`sempa-mlx sparse` on tiny models."""

import inspect

import numpy as np
import pytest

from sempa_mlx import cli_sparse, load_config
from sempa_mlx.config import SparseConfig
from sempa_mlx.encoder.coder_file import read_coder, read_examples
from sempa_mlx.encoder.encoder import Encoder
from tests.adapters import edit_json
from tests.command import done, refused, training, write_inputs

SIZES = ("--hidden", 40, "--k", 4, "--epochs", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("sparse"))


def fit(folder, name, *options, data=None):
    arguments = ("--model", folder / "base", "--data", data or folder / "pairs.jsonl")
    return ("sparse", "fit", *arguments, "--out", folder / name, *SIZES, "--force", *options)


@pytest.fixture(scope="module", autouse=True)
def cache(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache" / "hub"))
        yield folder / "cache"


@pytest.mark.parametrize("kind", ["topk", "fista", "lexical"])
def test_fit_writes_a_coder_of_the_models_vectors(folder, kind):
    outcome = done("--json", *fit(folder, f"{kind}.safetensors", "--coder", kind))
    document = outcome.document
    encoder = Encoder.load(folder / "base")
    coder = read_coder(
        folder / f"{kind}.safetensors", lambda: np.zeros((document["hidden"], encoder.dim))
    )
    assert document["path"] == str(folder / f"{kind}.safetensors")
    assert (document["kind"], coder.kind, coder.k, coder.num_texts) == (kind, kind, 4, 36)
    assert coder.vectors == encoder.vectors_key
    assert coder.hidden == (
        len(encoder.loaded.model.model.embed_tokens.weight) if kind == "lexical" else 40
    )
    assert 0 <= document["dead_share"] < 1
    assert document["variance_unexplained"] > 0
    examples = read_examples(folder / f"{kind}.safetensors")
    assert examples
    assert all(1 <= len(texts) <= 5 for texts in examples.values())


def test_embeddings_are_computed_once(folder, cache, monkeypatch):
    done(*fit(folder, "first.safetensors"))
    assert list((cache / "sempa-mlx" / "vectors").glob("*.npy"))
    monkeypatch.setattr(Encoder, "read", lambda *_: pytest.fail("embedded again"))
    outcome = done(*fit(folder, "second.safetensors"))
    assert "unexplained" in outcome.err
    first, second = (read_coder(folder / f"{name}.safetensors") for name in ("first", "second"))
    np.testing.assert_array_equal(first.atoms, second.atoms)


def test_damaged_embeddings_are_computed_anew(folder, cache):
    done(*fit(folder, "first.safetensors"))
    for path in (cache / "sempa-mlx" / "vectors").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-5])
    done(*fit(folder, "second.safetensors"))
    first, second = (read_coder(folder / f"{name}.safetensors") for name in ("first", "second"))
    np.testing.assert_array_equal(first.atoms, second.atoms)


def test_lines_of_text_will_do(folder):
    (folder / "lines.txt").write_text("A cat.\nA dog.\n\nA cat.\nTwo [/x] birds.\n")
    document = done("--json", *fit(folder, "lines.safetensors", data=folder / "lines.txt")).document
    assert document["num_texts"] == 3


def test_explain_shows_latents_words_and_sentences(folder):
    done(*fit(folder, "topk.safetensors"))
    arguments = ("--coder", folder / "topk.safetensors", "--model", folder / "base", "--top", 3)
    text = "The cat [/x] sleeps."
    document = done("--json", "sparse", "explain", text, "Two dogs.", *arguments).document
    assert [found["text"] for found in document["texts"]] == [text, "Two dogs."]
    for found in document["texts"]:
        values = [latent["value"] for latent in found["latents"]]
        assert values == sorted(values, reverse=True)
        assert len(values) == min(3, found["values"])
        assert all(latent["words"] for latent in found["latents"])
    shown = done("sparse", "explain", text, *arguments).out
    assert text in shown
    assert str(document["texts"][0]["latents"][0]["latent"]) in shown


def test_explained_codes_are_those_of_the_coder(folder):
    done(*fit(folder, "topk.safetensors"))
    document = done(
        *("--json", "sparse", "explain", "The cat sleeps.", "--top", 40),
        *("--coder", folder / "topk.safetensors", "--model", folder / "base"),
    ).document
    encoder, coder = Encoder.load(folder / "base"), read_coder(folder / "topk.safetensors")
    states, _ = encoder.read(["The cat sleeps."], (encoder.depth,))
    expected = coder.encode(states[0, 0])
    shown = {each["latent"]: each["value"] for each in document["texts"][0]["latents"]}
    assert shown == pytest.approx(dict(zip(expected.indices, expected.data, strict=True)))


def test_coder_of_a_lexical_kind_names_tokens(folder):
    done(*fit(folder, "lexical.safetensors", "--coder", "lexical"))
    document = done(
        *("--json", "sparse", "explain", "The cat sleeps."),
        *("--coder", folder / "lexical.safetensors", "--model", folder / "base"),
    ).document
    tokenizer = Encoder.load(folder / "base").loaded.tokenizer
    for latent in document["texts"][0]["latents"]:
        assert latent["words"] == [tokenizer.decode([latent["latent"]]).strip()]


def test_coder_of_another_model_is_refused(folder):
    done(*fit(folder, "topk.safetensors"))
    done(*training(folder), "--adapter-path", folder / "run")
    outcome = refused(
        *(2, "sparse", "explain", "A cat.", "--coder", folder / "topk.safetensors"),
        *("--adapter-path", folder / "run"),
    )
    assert "another model, adapter" in outcome.err


def test_faults_of_the_line_are_told_before_a_model_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(Encoder, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert ".safetensors" in refused(2, *fit(folder, "coder.bin")).err
    one = folder / "one.txt"
    one.write_text("Alone.\n")
    assert "too few" in refused(3, *fit(folder, "c.safetensors", data=one)).err
    missing = folder / "none.safetensors"
    assert "no such coder" in refused(1, "sparse", "explain", "x", "--coder", missing).err
    assert "give a text" in refused(2, "sparse", "explain", " ", "--coder", missing).err


def test_k_beyond_the_latents_writes_nothing(folder):
    outcome = refused(2, *fit(folder, "wide.safetensors", "--k", 41))
    assert "1 to 40" in outcome.err
    assert not (folder / "wide.safetensors").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--learning-rate", -1), ("--learning-rate", "nan"), ("--preference", "inf")],
)
def test_settings_that_cannot_be_are_told_by_their_options(folder, option, value):
    outcome = refused(2, *fit(folder, "none.safetensors"), option, value)
    assert option in outcome.errors[0]


def test_a_file_of_a_recipes_name_is_not_read(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("no: settings")
    done(*fit(folder, "again.safetensors"))


def test_faulty_rows_of_ones_own_file_are_told(folder, tmp_path):
    rows = (folder / "pairs.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows + '{"anchor": "A cat"}\n')
    arguments = ("--model", folder / "base", "--data", tmp_path / "rows.jsonl")
    outcome = refused(3, "sparse", "fit", *arguments, "--out", tmp_path / "c.safetensors")
    assert "rows.jsonl:" in outcome.errors[0]
    assert not (tmp_path / "c.safetensors").exists()


def test_latents_fewer_than_k_are_told_before_anything_is_read(folder, tmp_path):
    arguments = ("--data", tmp_path / "nowhere", "--out", tmp_path / "c.safetensors")
    assert "32" in refused(2, "sparse", "fit", *arguments, "--hidden", 16).err


def test_existing_coder_is_kept_unless_forced(folder):
    done(*fit(folder, "kept.safetensors"))
    arguments = [each for each in fit(folder, "kept.safetensors") if each != "--force"]
    assert "--force" in refused(2, *arguments).err


def test_the_commands_defaults_are_the_settings():
    assert load_config("demo").sparse == SparseConfig(), "what the command begins with"
    options = inspect.signature(cli_sparse.sparse_fit).parameters
    for name, value in SparseConfig(coder="topk"):
        if name in options:
            assert options[name].default == value, name
    assert {"k", "epochs", "batch_size", "learning_rate", "preference"} <= options.keys()


def test_a_run_named_as_the_model_embeds_as_it_says(folder, here):
    done(*training(folder), "--adapter-path", "run")
    edit_json(here / "run" / "encoder.json", adapter_scale=0.5)
    fit_line = ("sparse", "fit", "--data", folder / "pairs.jsonl", "--out", "c.safetensors", *SIZES)
    done(*fit_line, "--model", "run")
    (here / "notes.txt").write_text("A cat\n")
    done("embed", "notes.txt", "-o", "a.npz", "--model", "run", "--sparse", "c.safetensors")
