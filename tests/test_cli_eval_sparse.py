"""`sempa-mlx eval sparse` on a tiny model."""

import json

import numpy as np
import pytest

from sempa_mlx.data.sts_files import read_sts_file
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.sparse_embed import Coding
from sempa_mlx.evaluation.sts import evaluate_sts
from tests.command import done, files_below, refused, training, write_inputs, write_pairs
from tests.tiny import write_tiny_folder

CODER = ("--hidden", 40, "--k", 4, "--epochs", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("sparse"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache" / "hub"))
        for kind in ("topk", "lexical"):
            target = ("--out", folder / f"{kind}.safetensors", "--coder", kind)
            data = ("--model", folder / "base", "--data", folder / "pairs.jsonl")
            done("sparse", "fit", *data, *target, *CODER)
        yield folder


def compared(folder, *options, coders=("topk.safetensors",)):
    files = ("--data", folder / "dev.tsv", "--fit", folder / "pairs.jsonl")
    named = [word for name in coders for word in ("--coder", folder / name)]
    return ("eval", "sparse", "--model", folder / "base", *files, *named, *options)


def test_a_document_holds_every_way_its_codes_and_what_they_find(folder, tmp_path):
    options = ("--k", 2, "--k", 4, "--pairs", folder / "pairs.jsonl", "--out", tmp_path / "r.json")
    both = ("topk.safetensors", "lexical.safetensors")
    document = done("--json", *compared(folder, *options, coders=both)).document
    assert json.loads((tmp_path / "r.json").read_text()) == document
    rows = {(row["system"], row["setting"]): row for row in document["results"]}
    assert {name for name, _ in rows} == {
        *("dense", "dense fp16", "dense centred", "int8", "int8 centred", "binary centred"),
        *("truncated", "PCA", "top k", "top k centred", "topk topk", "lexical lexical"),
        *("dense standardized", "top k standardized"),
    }
    assert rows["PCA", 4]["bytes"] == rows["topk topk", 2]["bytes"] == 8
    assert rows["topk topk", 4]["codes"]["mean_values"] <= 4
    assert rows["dense", None]["codes"] is None
    assert document["fit_texts"] == 12
    assert document["pairs"] == {"dev.tsv": 12}
    assert document["coders"]["topk topk"]["hidden"] == 40
    found = {(row["system"], row["setting"]): row for row in document["retrieval"]}
    dense = ["dense", "dense centred", "dense standardized"]
    assert list(found)[:3] == [(name, None) for name in dense]
    assert len(found) == 3 + 2 * 2
    for row in found.values():
        assert (row["num_queries"], row["num_candidates"]) == (12, 24)
        assert 0 <= row["recall"] <= 1
        assert row["seconds"] > 0


def test_scores_are_those_of_the_encoder_and_the_coder(folder):
    document = done("--json", *compared(folder, "--k", 4)).document
    rows = {(row["system"], row["setting"]): row for row in document["results"]}
    encoder = Encoder.load(folder / "base")
    from sempa_mlx.data.records import StsTask

    pairs = read_sts_file(folder / "dev.tsv")
    (score,) = evaluate_sts(encoder, [StsTask("dev.tsv", "file", pairs)])
    assert rows["dense", None]["scores"]["dev.tsv"] == pytest.approx(100 * score.spearman)
    coder = Coding.open(encoder, folder / "topk.safetensors").coder
    texts = list(dict.fromkeys(t for p in pairs for t in (p.sentence1, p.sentence2)))
    vectors = encoder.read(texts, (encoder.depth,))[0][0, 0]
    errors = vectors - coder.decode(coder.encode(vectors, 4))
    expected = (errors**2).sum() / ((vectors - vectors.mean(axis=0)) ** 2).sum()
    assert rows["topk topk", 4]["codes"]["unexplained"] == pytest.approx(expected, rel=1e-3)


def test_dense_searches_are_of_the_vectors_they_name(folder, monkeypatch):
    seen = []

    def remember(queries, candidates):
        seen.append((queries, candidates))
        return lambda query: np.array([query])

    monkeypatch.setattr("sempa_mlx.evaluation.retrieval.dense_search", remember)
    done(*compared(folder, "--k", 2, "--pairs", folder / "pairs.jsonl"))
    encoder = Encoder.load(folder / "base")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    anchors = [row["anchor"] for row in rows]
    others = [row[name] for row in rows for name in ("entailment", "contradiction")]
    raw, fit = (encoder.read(texts, (encoder.depth,))[0][0, 0] for texts in (others, anchors))
    mean, spread = fit.mean(axis=0), fit.std(axis=0)
    for (queries, candidates), (off, by) in zip(
        seen, [(0, 1), (mean, 1), (mean, spread)], strict=True
    ):
        np.testing.assert_allclose(queries, (fit - off) / by, rtol=1e-2, atol=1e-4)
        np.testing.assert_allclose(candidates, (raw - off) / by, rtol=1e-2, atol=1e-4)


def test_tables_are_for_people(folder):
    outcome = done(*compared(folder, "--k", 2, "--pairs", folder / "pairs.jsonl"))
    for text in ("Spearman x 100", "bytes", "12 other texts", "eff. latents", "recall@10"):
        assert text in outcome.out
    assert "avg" not in outcome.out, "one task needs no average"
    assert "recall" not in done(*compared(folder, "--k", 2)).out


def test_a_score_that_is_undefined_says_so(folder, tmp_path):
    (tmp_path / "same.tsv").write_text("3\ta cat\ta dog\n3\ta man\ta boy\n")
    arguments = compared(folder, "--k", 2, "--data", tmp_path / "same.tsv")
    assert "undefined" in done(*arguments).out
    rows = done("--json", *arguments).document["results"]
    assert {row["average"] for row in rows} == {None}


def test_coders_of_like_names_are_told_apart(folder, tmp_path):
    (tmp_path / "topk.safetensors").write_bytes((folder / "topk.safetensors").read_bytes())
    other = ("--coder", tmp_path / "topk.safetensors", "--k", 2)
    coders = done("--json", *compared(folder, *other)).document["coders"]
    assert list(coders) == [f"topk {each / 'topk.safetensors'}" for each in (folder, tmp_path)]


def test_a_coder_of_another_model_is_refused(folder, tmp_path):
    write_tiny_folder(tmp_path / "other", seed=5)
    arguments = [*compared(folder), "--model", tmp_path / "other"]
    outcome = refused(2, *arguments)
    assert "fitted to the vectors of another model" in outcome.errors[0]


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        (1, ("--coder", "nowhere.safetensors"), "no such coder"),
        (3, ("--fit", "nowhere.txt"), "no such file"),
        (3, ("--pairs", "nowhere.jsonl"), "no such file"),
        (3, ("--data", "nowhere.tsv"), "no such file or folder"),
    ],
)
def test_what_is_not_there_is_told_before_a_model_is_loaded(
    folder, tmp_path, monkeypatch, code, options, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Encoder, "load", lambda *_, **__: pytest.fail("loaded"))
    assert message in refused(code, *compared(folder, *options)).errors[0]
    assert files_below(tmp_path) == {}


def test_one_text_is_nothing_to_fit_to(folder, tmp_path):
    (tmp_path / "one.txt").write_text("a cat\n\na cat\n")
    outcome = refused(3, *compared(folder, "--fit", tmp_path / "one.txt"))
    assert "1 distinct texts are too few" in outcome.errors[0]


def test_a_run_folder_with_a_coder_names_its_own_model(folder, tmp_path):
    done(*training(folder), "--adapter-path", tmp_path / "run")
    data = ("--adapter-path", tmp_path / "run", "--data", folder / "pairs.jsonl")
    done("sparse", "fit", *data, "--out", tmp_path / "run" / "coder.safetensors", *CODER)
    files = ("--data", folder / "dev.tsv", "--fit", folder / "pairs.jsonl", "--k", 4)
    document = done("--json", "eval", "sparse", "--coder", tmp_path / "run", *files).document
    assert list(document["coders"]) == ["topk run"]
    assert document["coders"]["topk run"]["vectors"] == Encoder.load(tmp_path / "run").vectors_key
    assert np.isfinite(document["results"][-1]["average"])


def test_several_tasks_have_an_average(folder, tmp_path):
    for name, count in (("STSB", 9), ("STS12", 7)):
        write_pairs(tmp_path / name / "test.tsv", count)
    options = ("--data", tmp_path, "--tasks", "STSB,STS12", "--k", 2)
    document = done("--json", *compared(folder, *options)).document
    for row in document["results"]:
        assert row["average"] == pytest.approx(np.mean(list(row["scores"].values())))
    assert "avg" in done(*compared(folder, *options)).out
