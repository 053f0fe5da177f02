"""`sempa-mlx demo`: what it prints and counts is what its own parts find."""

import numpy as np
import pytest

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.evaluation.generation import text_perplexity
from sempa_mlx.model.lora import dialled
from tests.command import done, refused, results_of


@pytest.fixture
def place(here, tiny_embedded, short_demo):
    """A folder to work in, with a tiny model and few rows for the packaged."""
    return here


def test_figures_are_those_of_the_run_it_leaves(place):
    shown = done("demo", "--json").document
    folder = place / "sempa-demo"
    trained = Encoder.load(folder / "run")
    assert shown["training"] == results_of(folder / "run")
    assert shown["scores"].keys() == {"base, mean pooling", "base, PromptEOL", "trained"}
    text = (folder / "sentences.txt").read_text(encoding="utf-8").rstrip("\n")
    assert np.load(shown["store"]).shape == (len(text.splitlines()), trained.dim)
    found = done("search", shown["store"], text.splitlines()[0], "--json").document
    assert found["queries"][0]["hits"][0]["text"] == text.splitlines()[0]

    model, generation = trained.loaded.model, shown["generation"]
    tokens = trained.loaded.tokenizer.encode(text)
    for key, scale in (("base_perplexity", 0.0), ("perplexity", trained.settings.adapter_scale)):
        with dialled(model, scale):
            expected = text_perplexity(model, tokens).perplexity
        assert generation[key] == pytest.approx(expected, rel=1e-6)
    assert generation["perplexity"] != generation["base_perplexity"]
    assert generation["kl"] > 0


def test_a_second_time_the_run_is_used_again(place):
    first = done("demo")
    assert "done by an earlier demo" not in first.err
    before = (place / "sempa-demo" / "run" / "adapters.safetensors").stat()
    second = done("demo")
    assert "done by an earlier demo" in second.err
    assert second.out == first.out
    assert (place / "sempa-demo" / "run" / "adapters.safetensors").stat() == before


def test_nothing_that_another_wrote_is_written_over(place):
    (place / "sentences.txt").write_text("my own\n")
    (place / "sentences.txt.npy").write_bytes(b"my vectors")
    run = place / "run"
    run.mkdir()
    (run / "config.yaml").write_text("data:\n  train: mine.jsonl\n")
    (run / "metrics.jsonl").write_text("{}\n")
    shown = refused(2, "demo", "--folder", ".")
    for name in ("run", "sentences.txt", "sentences.txt.npy"):
        assert f"{name}: not what this demo writes" in shown.err
    assert "3 problems; nothing was written" in shown.err
    assert (place / "sentences.txt").read_text() == "my own\n"
    assert (place / "sentences.txt.npy").read_bytes() == b"my vectors"
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "metrics.jsonl"]


def test_a_demo_that_stopped_is_done_again(place):
    done("demo")
    folder = place / "sempa-demo"
    (folder / "run" / "results.json").unlink()
    (folder / "sentences.txt.npy").unlink()
    assert "done by an earlier demo" not in done("demo").err
    assert (folder / "sentences.txt.npy").exists()


def test_its_own_folder_is_known_by_any_name(place):
    done("demo")
    assert "done by an earlier demo" in done("demo", "--folder", place / "sempa-demo").err
    (place / "sempa-demo").rename(place / "a: #2")
    assert "done by an earlier demo" in done("demo", "--folder", "a: #2").err


@pytest.mark.parametrize("name", ["sentences.txt.json", "sentences.txt.ids.npy"])
def test_what_lies_beside_the_vectors_is_not_written_over(place, name):
    (place / "own").mkdir()
    (place / "own" / name).write_text("mine")
    assert f"{name}: not what this demo writes" in refused(2, "demo", "--folder", "own").err
