"""What the export for sentence-transformers refuses, and what it writes; no torch is needed."""

import json
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from sempa_mlx.data.templates import clean_sentence
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.fitting import fit_after
from sempa_mlx.errors import ModelError, UsageError
from sempa_mlx.export.sentence_transformers import HARD_TEXTS, export_sentence_transformers
from tests.adapters import write_run
from tests.command import done, refused
from tests.tiny import write_tiny_folder


def run_with(tmp_path, **changes):
    write_tiny_folder(tmp_path / "base")
    run = write_run(tmp_path / "run", tmp_path / "base")
    encoder = Encoder.load(run)
    encoder = Encoder(encoder.loaded, replace(encoder.settings, **changes))
    encoder.save_settings(run)
    return encoder


@pytest.mark.parametrize("method", ["echo", "ke", "pretcot", "metaeol", "cp", "tp"])
def test_methods_without_a_counterpart_are_refused(tmp_path, method):
    run_with(tmp_path, method=method)
    with pytest.raises(UsageError, match="more than a prompt and a pooling"):
        export_sentence_transformers(tmp_path / "run", tmp_path / "st")
    assert not (tmp_path / "st").exists()


def test_layer_and_map_are_refused_together(tmp_path):
    encoder = run_with(tmp_path, layer=1)
    post, _ = fit_after(encoder, HARD_TEXTS, "standardize", 0, folder=tmp_path / "fits")
    Encoder(encoder.loaded, replace(encoder.settings, post=post)).save_settings(tmp_path / "run")
    with pytest.raises(UsageError) as caught:
        export_sentence_transformers(tmp_path / "run", tmp_path / "st")
    told = " ".join(problem.what for problem in caught.value.problems)
    assert "final layer only" in told
    assert "standardize has no module" in told


def test_the_tokenizer_cleans_as_we_do(tmp_path):
    encoder = run_with(tmp_path)
    export_sentence_transformers(tmp_path / "run", tmp_path / "st")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "st")
    normalise = tokenizer.backend_tokenizer.normalizer.normalize_str
    texts = [*HARD_TEXTS, "?", "!", "A?'", 'x"', "\x1c a \x85 b ", "a.b", "it's", "...", "—"]
    for text in texts:
        assert normalise(text) == f' "{clean_sentence(text)}"'
    assert [tuple(ids) for ids in tokenizer(texts)["input_ids"]] == list(encoder.tokenize(texts))


def test_a_tokenizer_that_joins_words_is_refused(tmp_path, monkeypatch):
    """As one would that merges over blanks: here cleaning is taken away."""
    run_with(tmp_path)
    monkeypatch.setattr("sempa_mlx.export.sentence_transformers._cleaning", list)
    with pytest.raises(ModelError, match="does not split sentences"):
        export_sentence_transformers(tmp_path / "run", tmp_path / "st")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]


def test_models_of_other_names_are_refused(tmp_path):
    write_tiny_folder(tmp_path / "base", "lfm2")
    write_run(tmp_path / "run", tmp_path / "base")
    with pytest.raises(ModelError, match="may have other names in transformers"):
        export_sentence_transformers(tmp_path / "run", tmp_path / "st")


def test_the_command_says_how_to_open_it(tmp_path):
    run_with(tmp_path, truncate_dim=8)
    line = ["export", "--to", "sentence-transformers", "--adapter-path", tmp_path / "run"]
    told = done(*line, "--out", tmp_path / "st", "--dtype", "bfloat16")
    assert "truncate_dim=8)" in told.err
    config = json.loads((tmp_path / "st" / "config.json").read_text())
    assert "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))
    modules = json.loads((tmp_path / "st" / "modules.json").read_text())
    assert [each["type"].rpartition(".")[2] for each in modules] == [
        *("Transformer", "Pooling", "Normalize"),
    ]
    refused(2, *line, "--out", tmp_path / "new", "--dtype", "int8")
    refused(2, *line, "--out", tmp_path / "st")
    refused(2, *line, "--out", tmp_path / "new", "--q-bits", "4")
