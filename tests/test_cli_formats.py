"""`embed` and `search` in every format of vectors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sempa_mlx.encoder import parquet_file
from sempa_mlx.encoder.dense_search import read_dense
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.vector_form import FORMATS
from tests.command import SENTENCES, done, files_below, note_embedded, refused
from tests.tiny import write_tiny_folder

WITH_TEXTS = ("jsonl", "csv", "parquet")


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """Two models and a file of text in each format; tests write elsewhere."""
    folder = tmp_path_factory.mktemp("space")
    write_tiny_folder(folder / "base")
    write_tiny_folder(folder / "other", seed=5)
    (folder / "notes.txt").write_text("".join(f"{text}\n" for text in SENTENCES))
    for name in FORMATS:
        arguments = ["embed", folder / "notes.txt", "--model", folder / "base"]
        outcome = done(*arguments, "-o", folder / f"a.{name}", "--json")
        assert outcome.document["sidecar"] == str(
            folder / ("a.json" if name == "npy" else f"a.{name}.json")
        )
    return folder


def hits_of(outcome):
    return outcome.document["queries"][0]["hits"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_hits_and_lines(space, here, name):
    outcome = done("search", space / f"a.{name}", SENTENCES[1], "-k", 6, "--json")
    assert outcome.document["kind"] == "dense"
    assert hits_of(outcome) == hits_of(
        done("search", space / "a.npy", SENTENCES[1], "-k", 6, "--json")
    )
    assert [hit["line"] for hit in hits_of(outcome)[:2]] == [2, 6]
    assert all(hit["text"] == SENTENCES[hit["line"] - 1] for hit in hits_of(outcome))


@pytest.mark.parametrize("name", FORMATS)
def test_another_model_is_refused_whatever_the_format(space, here, name):
    outcome = refused(1, "search", space / f"a.{name}", "a cat", "--model", space / "other")
    assert "made by another model" in outcome.err
    shutil.copytree(space, here, dirs_exist_ok=True)
    line = ["embed", "notes.txt", "-o", f"a.{name}", "--model", "other", "--update"]
    assert "its vectors cannot be kept" in refused(2, *line).err


@pytest.mark.parametrize("name", FORMATS)
def test_texts_stay_where_the_file_holds_them(space, here, name):
    (here / "notes.txt").write_text("A cat\nTwo dogs\n")
    done("embed", "notes.txt", "--model", space / "base", "--format", name)
    (here / "notes.txt").unlink()
    found = hits_of(done("search", f"notes.txt.{name}", "Two dogs", "--json"))
    assert [hit["text"] for hit in found] == (
        ["Two dogs", "A cat"] if name in WITH_TEXTS else [None, None]
    )


@pytest.mark.parametrize("name", FORMATS)
def test_new_lines_alone_are_embedded(space, here, monkeypatch, name):
    (here / "notes.txt").write_text("A cat\nTwo dogs\n")
    line = ["embed", "notes.txt", "--model", space / "base", "--format", name]
    done(*line, "-o", "kept.vectors")
    (here / "notes.txt").write_text("Two dogs\nA bird sings\n")
    embedded = note_embedded(monkeypatch)
    assert "1 of them kept" in done(*line, "-o", "kept.vectors", "--update").err
    assert embedded == ["A bird sings"]
    expected = Encoder.load(space / "base").encode(["Two dogs", "A bird sings"])
    found = read_dense(here / "kept.vectors", name).vectors
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_there_is_kept_unless_forced(space, here, name):
    line = ["embed", space / "notes.txt", "-o", f"a.{name}", "--model", "not-looked-for"]
    beside = "a.json" if name == "npy" else f"a.{name}.json"
    for taken in (f"a.{name}", beside):
        Path(taken).write_text("precious")
        assert f"{taken} exists; add --force" in refused(2, *line).err
        assert files_below(here) == {taken: b"precious"}
        Path(taken).unlink()
    Path(f"a.{name}").mkdir()
    assert "is a folder; name a file" in refused(2, *line, "--force").err
    Path(f"a.{name}").rmdir()
    done(*line[:-1], space / "base", "--force")


def test_the_wish_is_stronger_than_the_ending(space, here):
    done("embed", space / "notes.txt", "-o", "a.csv", "--format", "npz", "--model", space / "base")
    assert np.load("a.csv")["embeddings"].shape == (6, 32)
    assert "not whole" not in refused(3, "search", "a.csv", "a cat").out


def test_parquet_without_its_package_is_refused_before_the_work(space, here, monkeypatch):
    monkeypatch.setattr(parquet_file, "find_spec", lambda _name: None)
    line = ["embed", space / "notes.txt", "-o", "a.parquet", "--model", "not-looked-for"]
    for arguments in (line, ["search", space / "a.parquet", "a cat"]):
        error = refused(2, *arguments).err
        assert "parquet needs pyarrow, which is not installed" in error
        assert "pip install 'sempa-mlx[parquet]'" in error
    assert files_below(here) == {}


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "npy"])
def test_codes_of_a_byte_lie_beside_npy_alone(space, here, name):
    line = ["embed", space / "notes.txt", "--model", "not-looked-for", "--precision", "int8"]
    assert "--precision adds codes to a .npy" in refused(2, *line, "-o", f"a.{name}").err
    error = refused(2, "search", space / f"a.{name}", "a cat", "--precision", "int8").err
    assert "--precision names codes beside a .npy" in error


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_was_cut_is_named(space, here, name):
    for path in space.glob("a.*"):
        shutil.copy(path, here)
    Path(f"a.{name}").write_bytes((space / f"a.{name}").read_bytes()[:-50])
    assert f"a.{name}" in refused(3, "search", f"a.{name}", "a cat").errors[0]


def test_a_file_that_holds_its_header_may_travel_alone(space, here):
    for name in ("npz", "safetensors", "parquet"):
        shutil.copy(space / f"a.{name}", here)
        found = hits_of(done("search", f"a.{name}", SENTENCES[3], "--json"))
        assert found[0]["line"] == 4
    for name, beside in (("npy", "a.json"), ("jsonl", "a.jsonl.json"), ("csv", "a.csv.json")):
        shutil.copy(space / f"a.{name}", here)
        assert f"{beside}: no such file" in refused(3, "search", f"a.{name}", "a cat").errors[0]


def test_what_made_it_says_model_template_and_source(space):
    about = json.loads((space / "a.safetensors.json").read_text())
    assert about["source"] == str(space / "notes.txt")
    assert about["model"]["name"] == str(space / "base")
    assert {"template", "dim", "dtype", "ids", "adapter_path", "vectors"} <= about.keys()
