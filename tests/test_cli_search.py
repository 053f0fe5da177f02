"""`embed --sparse` and `search`, from the command line to the files and back."""

import json
import math
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.encoder.coder_file import CODER_FILE, write_coder
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.fitting import default_folder, fit_after
from sempa_mlx.encoder.postprocess import read_post, write_post
from sempa_mlx.encoder.sparse import code_cosines
from sempa_mlx.encoder.sparse_embed import Coding
from sempa_mlx.encoder.sparse_store import SparseStore, read_store, write_store
from sempa_mlx.model.head import output_matrix
from tests.command import (
    SENTENCES,
    done,
    files_below,
    note_embedded,
    refused,
    run,
    training,
    write_inputs,
)
from tests.encoder.codes import drawn_coder
from tests.tiny import write_tiny_folder


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A model, a run, coders of both, and what `embed` makes of them; tests write elsewhere."""
    folder = write_inputs(tmp_path_factory.mktemp("space"))
    write_tiny_folder(folder / "other", seed=5)
    (folder / "notes.txt").write_text("".join(f"{text}\n" for text in SENTENCES))
    done(*training(folder), "--adapter-path", folder / "run")
    trained = Encoder.load(folder / "run")
    write_coder(folder / "run" / CODER_FILE, drawn_coder(trained.vectors_key))
    base = Encoder.load(folder / "base")
    atoms = np.array(output_matrix(base.loaded.model))
    for kind, given in (("topk", None), ("lexical", atoms)):
        coder = drawn_coder(base.vectors_key, kind, atoms=given)
        write_coder(folder / f"{kind}.safetensors", coder)
    write_coder(folder / "alike.safetensors", drawn_coder(base.vectors_key, seed=3))
    embed = ("embed", folder / "notes.txt", "-o")
    of_run = ("--adapter-path", folder / "run")
    done(*embed, folder / "run.npz", *of_run, "--sparse", folder / "run")
    done(*embed, folder / "run.npy", *of_run)
    base = ("--model", folder / "base")
    done(*embed, folder / "base.npz", *base, "--sparse", folder / "topk.safetensors")
    return folder


def base_options(space, coder="topk"):
    return ["--model", space / "base", "--sparse", space / f"{coder}.safetensors"]


# embed --sparse


@pytest.mark.parametrize("coder", ["topk", "lexical"])
@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_a_file_becomes_codes(space, here, coder, ending):
    out = here / f"a.{ending}"
    options = base_options(space, coder)
    outcome = done("embed", space / "notes.txt", "-o", out, *options, "--k", 4, "--json")
    encoder = Encoder.load(space / "base")
    coding = Coding.open(encoder, space / f"{coder}.safetensors", 4)
    store = read_store(out)
    np.testing.assert_allclose(
        store.codes.toarray(), coding.encode(SENTENCES)[0].toarray(), rtol=1e-3, atol=1e-6
    )
    assert store.texts == SENTENCES
    assert outcome.document == {
        **{"path": str(out), "sidecar": f"{out}.json", "count": 6, "k": 4, "empty": 0},
        **{"latents": coding.coder.hidden, "values": store.codes.nnz, "truncated": 0},
    }
    assert {path.name for path in here.iterdir()} == {f"a.{ending}", f"a.{ending}.json"}


def test_codes_lie_beside_vectors_of_the_same_file(space, here):
    shutil.copy(space / "notes.txt", here)
    done("embed", "notes.txt", "--model", space / "base")
    outcome = done("embed", "notes.txt", *base_options(space))
    assert outcome.out == "notes.txt.npz\n"
    assert "coder: topk, 6 of 48 latents" in outcome.err
    endings = ("", ".npy", ".json", ".ids.npy", ".npz", ".npz.json")
    assert {path.name for path in here.iterdir()} == {f"notes.txt{each}" for each in endings}


def test_lines_of_a_lexical_coder_are_words(space, here):
    done("embed", space / "notes.txt", "-o", "a.jsonl", *base_options(space, "lexical"), "--k", 3)
    text = (space / "notes.txt").read_bytes()
    options = [*base_options(space, "lexical"), "--k", 3]
    outcome = done("embed", "-", *options, stdin=text)
    assert outcome.out == (here / "a.jsonl").read_text()
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == list(enumerate(SENTENCES))
    encoder = Encoder.load(space / "base")
    codes, _ = Coding.open(encoder, space / "lexical.safetensors", 3).encode(SENTENCES)
    for row, values in zip(rows, codes.toarray(), strict=True):
        weights = np.rint(100 * np.sort(values[values > 0])[::-1]).tolist()
        assert list(row["vector"].values()) == [weight for weight in weights if weight]
        for key in row["vector"]:
            assert not key.isdecimal() or len(key) == 1
    words = {key for row in rows for key in row["vector"]}
    vocabulary = {encoder.loaded.tokenizer.decode([token]) for token in range(340)}
    assert any(word.replace("▁", " ") in vocabulary for word in words)


def test_the_runs_cut_and_map_do_not_touch_codes(space, here):
    shutil.copytree(space / "run", "run")
    stored = json.loads((here / "run" / "encoder.json").read_text())
    (here / "run" / "encoder.json").write_text(json.dumps(stored | {"truncate_dim": 4}))
    done("embed", space / "notes.txt", "-o", "a.npz", "--adapter-path", "run", "--sparse", "run")
    expected = read_store(space / "run.npz").codes.toarray()
    np.testing.assert_array_equal(read_store(here / "a.npz").codes.toarray(), expected)


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--k", 3], ["--k counts values of sparse codes"]),
        (["-o", "a.npy", "CODER"], ["`npy` holds vectors"]),
        (["-o", "a.csv", "CODER"], ["`csv` holds vectors"]),
        (["--format", "parquet", "CODER"], ["`parquet` holds vectors"]),
        (["-o", "a.txt", "CODER"], ["unknown output format `txt`"]),
        (["-o", "-", "--format", "npz", "CODER"], ["stdout takes --format jsonl only"]),
        (["CODER", "--k", 49], ["k must lie in 1 to 48, the number of latents, not 49"]),
        (
            ["CODER", "--truncate-dim", 4, "--no-normalize", "--post", "abtt", "--format", "npy"],
            ["--no-normalize changes", "--truncate-dim changes", "--post changes", "`npy` holds"],
        ),
        (
            ["CODER", "--normalize", "--layer", 1, "--tuned", "a.json"],
            ["--layer and --tuned both", "--normalize changes vectors"],
        ),
    ],
)
def test_options_that_make_no_sense_are_refused_together(space, here, options, messages):
    coder = ["--sparse", space / "topk.safetensors"]
    words = [word for option in options for word in (coder if option == "CODER" else [option])]
    outcome = refused(2, "embed", space / "notes.txt", "--model", "not-looked-for", *words)
    assert len(outcome.errors) == len(messages)
    for message in messages:
        assert message in outcome.err
    assert files_below(here) == {}


@pytest.mark.parametrize(
    "words",
    [["--model", "other"], ["--model", "base", "--method", "mean"], ["--adapter-path", "run"]],
)
def test_a_coder_of_other_vectors_is_refused_before_anything_is_embedded(space, here, words):
    words = [space / word if word in ("other", "base", "run") else word for word in words]
    arguments = ["embed", space / "notes.txt", "-o", "a.npz", *words]
    outcome = refused(2, *arguments, "--sparse", space / "topk.safetensors")
    assert "fitted to the vectors of another model, adapter or method" in outcome.err
    assert "sparse fit" in outcome.err
    assert files_below(here) == {}


@pytest.mark.parametrize(
    "coder", ["nowhere.safetensors", "empty", "notes.txt", "base/model.safetensors"]
)
def test_what_is_no_coder_is_named(space, here, coder):
    (here / "empty").mkdir()
    path = "empty" if coder == "empty" else space / coder
    arguments = ["embed", space / "notes.txt", "-o", "a.npz", "--model", "not-looked-for"]
    assert "coder" in refused(1, *arguments, "--sparse", path).err


def test_codes_are_kept_unless_forced(space, here):
    arguments = ["embed", space / "notes.txt", "-o", "a.npz", *base_options(space)]
    (here / "a.npz.json").write_text("mine")
    assert "a.npz.json exists" in refused(2, *arguments).err
    done(*arguments, "--force")
    assert read_store(here / "a.npz").texts == SENTENCES


# search


def hits_of(outcome, query=0):
    return outcome.document["queries"][query]["hits"]


def test_a_sentence_finds_itself_among_codes(space, here):
    outcome = done("search", space / "run.npz", SENTENCES[3], "-k", 6, "--json")
    document = outcome.document
    assert (document["kind"], document["count"], document["k"]) == ("sparse", 6, 6)
    assert document["queries"][0]["query"] == SENTENCES[3]
    hits = hits_of(outcome)
    assert hits[0]["line"] == 4
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    codes = read_store(space / "run.npz").codes
    query, _ = Coding.open(Encoder.load(space / "run"), space / "run").encode([SENTENCES[3]])
    for hit in hits:
        assert hit["text"] == SENTENCES[hit["line"] - 1]
        cosine = code_cosines(codes[[hit["line"] - 1]], query)[0]
        assert hit["score"] == pytest.approx(cosine, abs=1e-6)
    scores = [hit["score"] for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_a_sentence_finds_itself_and_its_twin_among_vectors(space, here):
    texts = ["--texts", space / "notes.txt"]
    outcome = done("search", space / "run.npy", SENTENCES[1], "-k", 9, *texts, "--json")
    hits = hits_of(outcome)
    assert [hit["line"] for hit in hits[:2]] == [2, 6]
    vectors = np.load(space / "run.npy").astype(np.float64)
    for hit in hits:
        assert hit["text"] == SENTENCES[hit["line"] - 1]
        assert hit["score"] == pytest.approx(vectors[hit["line"] - 1] @ vectors[1], abs=1e-5)
    assert len(hits) == 6
    bare = done("search", space / "run.npy", SENTENCES[1], "--json")
    assert [hit["text"] for hit in hits_of(bare)] == [hit["text"] for hit in hits[:5]]


def test_lines_that_changed_since_are_not_shown_as_found(space, here):
    shutil.copy(space / "notes.txt", here)
    done("embed", "notes.txt", "--model", space / "base")
    lines = (here / "notes.txt").read_text().splitlines()
    (here / "notes.txt").write_text("\n".join([*lines[:-1], "Another line"]) + "\n")
    outcome = done("search", "notes.txt.npy", SENTENCES[1], "-k", 6, "--json")
    assert [hit["text"] for hit in hits_of(outcome)] == [None] * 6
    assert "no longer what was embedded" in done("search", "notes.txt.npy", "cat", "-k", 6).err
    (here / "notes.txt").unlink()
    done("search", "notes.txt.npy", "cat")


def test_only_new_lines_are_embedded_again(space, here, monkeypatch):
    (here / "notes.txt").write_text("A cat\nTwo dogs\nA cat\n")
    done("embed", "notes.txt", "--model", space / "base")
    first = np.load("notes.txt.npy")
    (here / "notes.txt").write_text("Two dogs\nA bird sings\nA cat\n")
    embedded = note_embedded(monkeypatch)
    told = done("embed", "notes.txt", "--model", space / "base", "--update")
    assert embedded == ["A bird sings"]
    assert "3 vectors of 32 dimensions, 2 of them kept" in told.err
    found = np.load("notes.txt.npy")
    assert np.array_equal(found[[0, 2]], first[[1, 0]])
    fresh = Encoder.load(space / "base").encode(["A bird sings"])
    np.testing.assert_allclose(found[[1]], fresh, atol=1e-6)
    embedded.clear()
    done("embed", "notes.txt", "--model", space / "base", "--update")
    assert embedded == []
    assert np.array_equal(np.load("notes.txt.npy"), found)


def test_vectors_of_another_encoder_are_not_kept(space, here):
    (here / "notes.txt").write_text("A cat\nTwo dogs\n")
    done("embed", "notes.txt", "--model", space / "base")
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    line = ["embed", "notes.txt", "--model", space / "base", "--update"]
    error = refused(2, *line, "--method", "mean", "--no-normalize").err
    assert "vectors: " in error
    assert "normalize: True there, False now" in error
    (here / "notes.txt.ids.npy").unlink()
    assert "no ids of the lines" in refused(3, *line).err
    del before["notes.txt.ids.npy"]
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def test_update_without_an_earlier_file_embeds_all(space, here):
    (here / "notes.txt").write_text("A cat\nTwo dogs\n")
    done("embed", "notes.txt", "--model", space / "base", "--update")
    assert np.load("notes.txt.npy").shape == (2, 32)


@pytest.mark.parametrize("name", ["run.npz", "run.npy"])
def test_many_queries_are_answered_as_each_alone(space, here, name):
    queries = [SENTENCES[0], "A dog", SENTENCES[4]]
    text = "".join(f"{query}\n" for query in queries).encode()
    outcome = done("search", space / name, "-", "-k", 3, "--json", stdin=text)
    assert [each["query"] for each in outcome.document["queries"]] == queries
    for number, query in enumerate(queries):
        alone = hits_of(done("search", space / name, query, "-k", 3, "--json"))
        together = hits_of(outcome, number)
        assert [hit["line"] for hit in together] == [hit["line"] for hit in alone]
        for left, right in zip(together, alone, strict=True):
            assert left["score"] == pytest.approx(right["score"], abs=1e-5)


def test_people_get_a_table_and_pipes_get_bare_lines(space, here):
    lines = done("search", space / "run.npz", SENTENCES[3], "-k", 2).out.splitlines()
    assert lines[:4] == ["", SENTENCES[3], "", "  score  line  text"]
    assert lines[4] == f" 1.0000     4  {SENTENCES[3]}"
    assert len(lines) == 6
    bare = done("search", space / "run.npz", SENTENCES[3], "-k", 1, "--quiet")
    assert (bare.out, bare.err) == (f"1.0000 4 {SENTENCES[3]}\n", "")
    text = f"{SENTENCES[3]}\n{SENTENCES[0]}\n".encode()
    many = done("search", space / "run.npz", "-", "-k", 1, "--quiet", stdin=text)
    assert many.out == f"1 1.0000 4 {SENTENCES[3]}\n2 1.0000 1 {SENTENCES[0]}\n"


def test_vectors_cut_mapped_and_long_are_searched_as_they_were_made(space, here):
    options = ["--truncate-dim", 8, "--no-normalize", "--method", "mean", "--layer", 1]
    post = ["--post", "abtt", "--post-fit", space / "notes.txt"]
    base = ["--model", space / "base"]
    done("embed", space / "notes.txt", "-o", "a.npy", *base, *options, *post)
    assert not np.allclose(np.linalg.norm(np.load("a.npy"), axis=1), 1)
    hits = hits_of(done("search", "a.npy", SENTENCES[4], "--json"))
    assert hits[0]["line"] == 5
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)


def test_a_map_that_is_gone_can_be_named(space, here, monkeypatch):
    base = ["--model", space / "base", "--post", "abtt", "--post-fit", space / "notes.txt"]
    done("embed", space / "notes.txt", "-o", "a.npy", *base)
    monkeypatch.setattr("sempa_mlx.encoder.reopen.default_folder", lambda: here / "empty")
    outcome = refused(1, "search", "a.npy", "a cat")
    assert "the map of the vectors (abtt " in outcome.err
    assert "--post FILE" in outcome.err
    about = json.loads((here / "a.json").read_text())
    fits = {path: read_post(path) for path in default_folder().glob("*.safetensors")}
    alike = [path for path, fit in fits.items() if fit.describe() == about["post"]]
    kept = next(path for path in alike if fits[path].vectors == about["vectors"])
    done("search", "a.npy", "a cat", "--post", kept)
    write_post(here / "other.safetensors", replace(fits[kept], vectors="f" * 16))
    outcome = refused(1, "search", "a.npy", "a cat", "--post", "other.safetensors")
    assert "the map of the vectors (abtt " in outcome.err


@pytest.mark.parametrize("name", ["run.npz", "run.npy"])
def test_model_adapter_and_coder_may_have_moved(space, here, name):
    shutil.copytree(space / "base", "base")
    shutil.copytree(space / "run", "run")
    shutil.copy(space / name, here)
    beside = name.replace(".npy", "") + ".json"
    if name == "run.npy":
        about = json.loads((space / beside).read_text())
        about["model"]["name"], about["adapter_path"] = str(here / "gone"), str(here / "away")
        (here / beside).write_text(json.dumps(about))
    else:
        store = read_store(space / name)
        store.about["encoder"]["model"]["name"] = str(here / "gone")
        store.about["encoder"]["adapter_path"] = str(here / "away")
        store.about["coder"]["path"] = str(here / "lost")
        write_store(here / name, SparseStore(store.codes, store.about, store.texts), "npz")
    arguments = ["search", name, SENTENCES[3], "--json"]
    if name == "run.npz":
        assert "its coder is no longer in" in refused_json(1, *arguments)
        arguments += ["--sparse", "run"]
    document = run(*arguments).document["error"]
    assert "no model" in document["problems"][0]["what"]
    assert "--model" in document["state"]
    arguments += ["--model", "base"]
    assert "the adapter that made the vectors is no longer" in refused_json(1, *arguments)
    assert hits_of(done(*arguments, "--adapter-path", "run"))[0]["line"] == 4


def refused_json(code, *arguments):
    outcome = run(*arguments)
    assert outcome.code == code
    return outcome.document["error"]["problems"][0]["what"]


@pytest.mark.parametrize("name", ["run.npz", "run.npy"])
def test_another_model_is_refused(space, here, name):
    outcome = refused(1, "search", space / name, "a cat", "--model", space / "other")
    assert "made by another model than" in outcome.err
    assert "name that model: --model" in outcome.err


@pytest.mark.parametrize("name", ["run.npz", "run.npy"])
def test_another_adapter_is_refused(space, here, name):
    done(*training(space, "train.seed=7"), "--adapter-path", here / "run")
    outcome = refused(1, "search", space / name, "a cat", "--adapter-path", here / "run")
    assert "made by another encoder than" in outcome.err
    with_adapter = ["--adapter-path", space / "run"]
    assert (
        "made by another encoder"
        in refused(1, "search", space / "base.npz", "a cat", *with_adapter).err
    )


def test_another_coder_is_refused(space, here):
    coder = ["--sparse", space / "alike.safetensors"]
    outcome = refused(1, "search", space / "base.npz", "a cat", *coder)
    assert "coded by another coder than" in outcome.err
    done("search", space / "base.npz", "a cat", "--sparse", space / "topk.safetensors")


@pytest.mark.parametrize("name", ["run.npz", "run.npy"])
@pytest.mark.parametrize(
    ("query", "stdin", "code", "message"),
    [
        ("", b"", 2, "the query is empty"),
        (" \t", b"", 2, "the query is empty"),
        ("-", b"", 3, "stdin: no query"),
        ("-", b"a cat\n\na dog\n \n", 3, "stdin:4: an empty query"),
        ("-", b"a cat\n\xff\n", 3, "UTF-8"),
    ],
)
def test_queries_that_say_nothing_are_refused(space, here, name, query, stdin, code, message):
    outcome = refused(code, "search", space / name, query, stdin=stdin)
    assert message in outcome.err


def test_stores_that_cannot_be_searched_are_named(space, here):
    for name, code, message in (
        ("notes.txt", 2, "not a store"),
        ("a.jsonl", 3, "no such file"),
        ("nothing.npy", 3, "no such file"),
        ("nothing.npz", 3, "no such file"),
    ):
        assert message in refused(code, "search", name, "a cat").err
    for name in ("run.npz", "run.npy", "run.json"):
        (here / name).write_bytes((space / name).read_bytes()[:-40])
    assert "neither vectors nor codes" in refused(3, "search", "run.npz", "a cat").err
    assert "not a file of vectors" in refused(3, "search", "run.npy", "a cat").err
    shutil.copy(space / "run.npy", here)
    assert "does not say what made run.npy" in refused(3, "search", "run.npy", "a cat").err
    write_store(here / "bare.npz", SparseStore(read_store(space / "run.npz").codes, {}), "npz")
    assert "does not say what made its codes" in refused(3, "search", "bare.npz", "a cat").err
    about = json.loads((space / "run.json").read_text())
    del about["vectors"]
    (here / "run.json").write_text(json.dumps(about))
    assert "does not say what made the vectors" in refused(1, "search", "run.npy", "a cat").err


def test_texts_of_another_length_are_refused(space, here):
    (here / "short.txt").write_text("one line\n")
    for name in ("run.npz", "run.npy"):
        arguments = ["search", space / name, "a cat", "--texts", "short.txt"]
        assert "1 lines, but" in refused(3, *arguments).err


def test_options_of_the_other_kind_of_store_are_refused(space, here):
    outcome = refused(2, "search", space / "run.npy", "a cat", "--sparse", space / "run")
    assert "the store holds vectors" in outcome.err
    outcome = refused(2, "search", space / "run.npz", "a cat", "--post", "a.safetensors")
    assert "the store holds codes" in outcome.err


def test_a_query_without_a_code_is_warned_of(space, here):
    encoder = Encoder.load(space / "base")
    coder = drawn_coder(encoder.vectors_key)
    write_coder(here / "mute.safetensors", replace(coder, bias=np.full(48, -1e3, np.float32)))
    arguments = ["-o", "a.npz", "--model", space / "base", "--sparse", "mute.safetensors"]
    outcome = done("embed", space / "notes.txt", *arguments)
    assert "6 texts have a code without values" in outcome.err
    outcome = done("search", "a.npz", "a cat")
    assert "a query has a code without values" in outcome.err
    assert "only 0 of 6 lines share a latent with the query" in outcome.err
    assert hits_of(done("search", "a.npz", "a cat", "--json")) == []


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_a_search_through_codes_from_the_line(space, here, precision):
    shutil.copy(space / "notes.txt", here)
    done("embed", "notes.txt", "--model", space / "base")
    line = ["search", "notes.txt.npy", SENTENCES[1], "--precision", precision]
    assert "make them: sempa-mlx embed" in refused(3, *line).err
    again = ["embed", "notes.txt", "--model", space / "base", "--update", "--precision", precision]
    assert f"codes: notes.txt.{precision}.npy" in done(*again).err
    found = hits_of(done(*line, "--rescore", 6, "--json"))
    assert found == hits_of(done(*line[:3], "--json"))
    (here / "notes.txt").write_text("Another\n" + (here / "notes.txt").read_text())
    done(*again[:5])
    assert "codes of other vectors" in refused(3, *line).err


def test_precision_and_rescore_have_their_places(space, here):
    shutil.copy(space / "run.npz", here)
    error = refused(2, "search", "run.npz", "cat", "--precision", "int8").err
    assert "sparse ones" in error
    assert "goes with --precision" in refused(2, "search", "a.npy", "cat", "--rescore", 4).err
    shutil.copy(space / "notes.txt", here)
    refused(2, "embed", "notes.txt", "--precision", "int8", "--format", "jsonl")


def test_an_update_or_codes_write_over_no_file_of_others(space, here):
    (here / "notes.txt").write_text("A cat\nTwo dogs\n")
    line = ["embed", "notes.txt", "--model", space / "base"]
    files = ("json", "ids.npy", "int8.npy", "int8.json")
    for name in [f"notes.txt.{each}" for each in files]:
        (here / name).write_text("mine")
        refused(2, *line, "--precision", "int8")
        assert f"{name} exists" in refused(2, *line, "--precision", "int8", "--update").err
        assert (here / name).read_text() == "mine"
        (here / name).unlink()
    done(*line)
    for name in ("notes.txt.int8.npy", "notes.txt.int8.json"):
        (here / name).write_text("mine")
        assert f"{name} exists" in refused(2, *line, "--precision", "int8", "--update").err
        (here / name).unlink()
    done(*line, "--precision", "int8", "--update")
    done(*line, "--precision", "int8", "--update")


def test_force_beside_update_embeds_all_anew(space, here, monkeypatch):
    (here / "notes.txt").write_text("A cat\nTwo dogs\n")
    done("embed", "notes.txt", "--model", space / "base")
    embedded = note_embedded(monkeypatch)
    line = ["embed", "notes.txt", "--model", space / "base", "--method", "mean"]
    done(*line, "--update", "--force")
    assert embedded == ["A cat", "Two dogs"]


def test_codes_of_a_map_are_not_taken_for_those_of_none(space, here):
    (here / "notes.txt").write_text("".join(f"{text}\n" for text in SENTENCES))
    line = ["embed", "notes.txt", "--model", space / "base"]
    done(*line, "--post", "abtt", "--post-fit", "notes.txt", "--precision", "binary")
    done(*line, "--force")
    error = refused(3, "search", "notes.txt.npy", "cat", "--precision", "binary").err
    assert "codes of other vectors" in error


def test_a_store_without_its_usual_ending_has_no_hint_to_search_it(space, here):
    (here / "notes.txt").write_text("A cat\n")
    line = ["embed", "notes.txt", "--model", space / "base", "--format", "npz"]
    assert "search in it" not in done(*line, "-o", "v.bin").err
    assert "search in it" in done(*line, "-o", "v.npz").err


def test_a_pipe_needs_a_name_to_write_to_and_to_be_readable(space, here):
    os.mkfifo("pipe")
    writer = Thread(target=lambda: Path("pipe").write_text("A cat\n"))
    writer.start()
    outcome = refused(2, "embed", "pipe", "--model", space / "base")
    writer.join()
    assert "-o FILE" in outcome.err
    assert sorted(path.name for path in here.iterdir()) == ["pipe"]


def test_a_pipe_by_its_name_is_read_once(space, here):
    taken, given = os.pipe()
    os.write(given, b"A cat\nTwo dogs\n")
    os.close(given)
    try:
        done("embed", f"/dev/fd/{taken}", "-o", "a.npy", "--model", space / "base")
    finally:
        os.close(taken)
    assert np.load("a.npy").shape == (2, 32)
    assert json.loads((here / "a.json").read_text())["source"] is None


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
def test_a_name_that_is_no_utf8_is_written_down(space, here):
    name = os.fsdecode(b"caf\xe9.txt")
    (here / name).write_text("A cat\n")
    done("embed", name, "-o", "a.npy", "--model", space / "base")
    assert json.loads((here / "a.json").read_text())["source"] == str(here / name)
    assert "A cat" in done("search", "a.npy", "A cat").out


def test_a_map_that_is_asked_for_takes_the_place_of_the_runs(space, here):
    shutil.copytree(space / "run", here / "run")
    encoder = Encoder.load(here / "run")
    post, _ = fit_after(encoder, SENTENCES, "standardize", 0, folder=here / "maps")
    Encoder(encoder.loaded, replace(encoder.settings, post=post)).save_settings(here / "run")
    line = ["embed", space / "notes.txt", "-o", "a.npy", "--adapter-path", "run"]
    line += ["--adapter-scale", "0.5"]
    assert "belongs to other vectors" in refused(2, *line).err
    done(*line, "--post", "abtt:1", "--post-fit", space / "notes.txt")


def test_codes_that_a_kill_left_without_their_description_are_made_again(space, here):
    (here / "notes.txt").write_text("A cat\nTwo dogs\n")
    line = ["embed", "notes.txt", "--model", space / "base", "--update", "--precision", "int8"]
    done(*line)
    (here / "notes.txt.int8.json").unlink()
    refused(3, "search", "notes.txt.npy", "cat", "--precision", "int8")
    done(*line)
    done("search", "notes.txt.npy", "cat", "--precision", "int8")


def test_other_settings_of_the_same_weights_are_another_model(space, here):
    shutil.copytree(space / "base", here / "base")
    (here / "notes.txt").write_text("A cat\nTwo dogs\n")
    done("embed", "notes.txt", "--model", "base")
    config = json.loads((here / "base" / "config.json").read_text())
    (here / "base" / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))
    error = refused(1, "search", "notes.txt.npy", "cat").err
    assert "with other settings or tokenizer, or by an earlier version" in error


def test_vectors_beside_the_hashes_of_others_are_not_kept(space, here):
    """As after a copy of some files: what a line's vector is, only its hash can tell."""
    Path("a.txt").write_text("A cat\nTwo dogs\n")
    Path("b.txt").write_text("Art\nNo man\n")
    for name in ("a", "b"):
        done("embed", f"{name}.txt", "-o", f"{name}.npy", "--model", space / "base")
    for ending in ("npy", "json"):
        shutil.copy(f"b.{ending}", f"a.{ending}")
    before = files_below(here)
    outcome = refused(3, "embed", "a.txt", "-o", "a.npy", "--model", space / "base", "--update")
    assert "ids of other lines" in outcome.err
    assert "ids of other lines" in refused(3, "search", "a.npy", "a cat").err
    assert files_below(here) == before


def test_vectors_that_are_not_finite_are_not_written(space, here):
    shutil.copytree(space / "base", "broken")
    weights = mx.load("broken/model.safetensors")
    mx.eval(weights)
    name = "model.norm.weight"
    mx.save_safetensors("broken/model.safetensors", weights | {name: weights[name] * math.inf})
    Path("notes.txt").write_text("A cat\nTwo dogs\nNo man\n")
    before = files_below(here)
    outcome = refused(3, "embed", "notes.txt", "--model", "broken")
    assert "the embeddings of 3 of 3 texts hold NaN or infinity" in outcome.err
    assert files_below(here) == before
    done("embed", "notes.txt", "--model", space / "base")
    vectors = np.load("notes.txt.npy")
    vectors[1] = np.nan
    np.save("notes.txt.npy", vectors)
    outcome = refused(3, "embed", "notes.txt", "--model", space / "base", "--update")
    assert "the embeddings of 1 of 3 texts" in outcome.err


def test_a_path_that_cannot_be_is_told_as_that(space, here):
    Path("a").write_text("A cat\n")
    for line in (
        ("embed", "x" * 300),
        ("search", "x" * 300 + ".npy", "a"),
        ("embed", "a", "-o", "y" * 300 + ".npy"),
    ):
        assert "File name too long" in refused(2, *line, "--model", space / "base").err


def test_faults_of_stdin_are_told_of_stdin(space, here):
    outcome = refused(3, "embed", "-", "-o", "a.npy", "--model", space / "base", stdin=b"a\n\xff\n")
    assert outcome.errors[0].startswith("error: stdin:2: not UTF-8")
    Path("notes.txt").write_text("A cat\n")
    done("embed", "notes.txt", "--model", space / "base")
    outcome = refused(3, "search", "notes.txt.npy", "-", stdin=b"\xff\n")
    assert outcome.errors[0].startswith("error: stdin:1: not UTF-8")


def test_codes_go_beside_vectors_whatever_they_are_called(space, here):
    Path("notes.txt").write_text("A cat\nTwo dogs\nNo man\n")
    form = ("--format", "npy", "--precision", "int8")
    outcome = done("embed", "notes.txt", "-o", "vectors", *form, "--model", space / "base")
    assert "codes: " in outcome.err
    assert "search in it" not in outcome.err, "by its name it is no store"


def test_a_store_of_codes_with_a_changed_byte_is_named(space, here):
    Path("notes.txt").write_text("A cat\n")
    coder = space / "topk.safetensors"
    done("embed", "notes.txt", "-o", "a.npz", "--model", space / "base", "--sparse", coder)
    content = bytearray(Path("a.npz").read_bytes())
    content[content.rindex(b"PK\x01\x02") + 6] = 170  # the version that it takes to unpack it
    Path("a.npz").write_bytes(content)
    assert "a.npz" in refused(3, "search", "a.npz", "a cat").errors[0]
