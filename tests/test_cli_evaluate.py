"""`sempa-mlx eval` on tiny models: intervals, files of pairs, geometry, key tokens."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from sempa_mlx.commands.evaluate_tokens import _words
from sempa_mlx.data.sts_files import read_sts_file
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.fitting import fit_after
from sempa_mlx.evaluation.geometry import measure_geometry
from sempa_mlx.evaluation.stats import bootstrap_spearman, cosines, paired_difference
from sempa_mlx.evaluation.tokens import find_key_tokens, measure_alignment
from tests.command import done, files_below, refused, run, training, write_pairs, write_triplets
from tests.tiny import write_tiny_folder


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A model, a finished run and pairs; tests write elsewhere."""
    folder = tmp_path_factory.mktemp("space")
    write_tiny_folder(folder / "base")
    write_triplets(folder / "pairs.jsonl")
    write_pairs(folder / "dev.tsv")
    write_pairs(folder / "sts" / "STSB" / "test.tsv", 9)
    for part, count in (("a", 5), ("b", 7)):
        write_pairs(folder / "sts" / "STS12" / f"{part}.tsv", count)
    done(*training(folder), "--adapter-path", folder / "run")
    return folder


def of_sets(space, *options):
    tasks = ["--data", space / "sts", "--tasks", "STS12,STSB"]
    return ["eval", "sts", *tasks, "--model", space / "base", *options]


# sts


def test_results_carry_intervals_subsets_and_paired_tests(space, here):
    document = done("--json", *of_sets(space, "--adapter-path", space / "run")).document
    assert document["intervals"] == {
        "confidence": 0.95,
        "bootstrap": "percentile",
        "resamples": 2000,
    }
    base, trained = document["results"]
    assert {name: part["pairs"] for name, part in base["subsets"]["STS12"].items()} == {
        "a": 5,
        "b": 7,
    }
    assert "STSB" not in base["subsets"]
    for row in (base, trained):
        for task, value in row["scores"].items():
            ends = row["intervals"][task]
            assert ends["low"] <= value <= ends["high"]
            assert ends["undefined_resamples"] >= 0
        assert row["average_interval"]["low"] <= row["average"] <= row["average_interval"]["high"]
    assert "difference" not in base
    found = trained["difference"]
    assert found["from"] == "base prompteol"
    assert found["scores"].keys() == trained["scores"].keys()
    for name, gain in found["scores"].items():
        expected = trained["scores"][name] - base["scores"][name]
        assert gain["score"] == pytest.approx(expected, abs=2e-4)
        assert 0 < gain["p"] <= 1
    assert found["average"]["score"] == pytest.approx(
        trained["average"] - base["average"], abs=2e-4
    )


def test_the_paired_test_compares_the_same_pairs(space, here):
    """The same system twice differs by nothing, in every resample."""
    found = done(
        *["--json", *of_sets(space, "--adapter-path", space / "run", "--adapter-scale", "0")]
    ).document["results"][1]["difference"]
    for gain in (*found["scores"].values(), found["average"]):
        assert (gain["score"], gain["interval"]["low"], gain["interval"]["high"]) == (0, 0, 0)
        assert gain["p"] == 1


def test_details_are_tables_for_people(space, here):
    plain = done(*of_sets(space, "--adapter-path", space / "run")).out
    outcome = done(*of_sets(space, "--adapter-path", space / "run", "--details"))
    assert outcome.out.startswith(plain)
    for text in (
        "95% interval",
        "  a ",
        "  b ",
        "run prompteol: gain over base prompteol",
        "2,000",
    ):
        assert text in outcome.out
        assert text not in plain
    assert files_below(here) == {}


FORMS = {
    "tsv": lambda rows: "".join(f"{a}\t{b}\t{c}\n" for a, b, c in rows),
    "csv": lambda rows: (
        "score,sentence1,sentence2\n" + "".join(f'{a},"{b}","{c}"\n' for a, b, c in rows)
    ),
    "jsonl": lambda rows: "".join(
        json.dumps({"score": a, "sentence1": b, "sentence2": c}) + "\n" for a, b, c in rows
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_pairs_is_a_task_of_its_own(space, here, form):
    rows = [(n % 4, f"A cat number {n}, asleep", f"The dog  {n * n}") for n in range(9)]
    path = Path(f"mine.{form}")
    path.write_text(FORMS[form](rows))
    outcome = done("--json", "eval", "sts", "--data", path, "--adapter-path", space / "run")
    (row, trained), name = outcome.document["results"], f"mine.{form}"
    assert outcome.document["pairs"] == {name: 9}
    assert row["protocol"] == outcome.document["protocol"] == "file"
    pairs = read_sts_file(path)
    assert [(pair.score, pair.sentence1, pair.sentence2) for pair in pairs] == rows
    gold = np.array([pair.score for pair in pairs])
    estimates = []
    for encoder in (Encoder.load(space / "base"), Encoder.load(space / "run")):
        left, right = (encoder.encode([row[side] for row in rows]) for side in (1, 2))
        estimates.append(bootstrap_spearman(gold, cosines(left, right), resamples=2000, seed=1))
    for found, estimate in zip((row, trained), estimates, strict=True):
        assert found["average"] == found["scores"][name] == round(100 * estimate.value, 4)
        assert found["intervals"][name]["low"] == pytest.approx(
            100 * estimate.interval().low, abs=10
        ), "another seed draws other pairs, so this is near at best"
    expected = paired_difference(estimates[1], estimates[0]).p_value
    assert trained["difference"]["scores"][name]["p"] == pytest.approx(expected, abs=0.1)


def test_pairs_of_one_score_are_undefined_and_never_zero(space, here):
    Path("same.tsv").write_text("3\ta cat\ta dog\n3\tb\tc\n3.0\tx\ty\n")
    arguments = ["eval", "sts", "--data", "same.tsv", "--model", space / "base"]
    outcome = done(*arguments, "--details", "--out", "out.json", "--adapter-path", space / "run")
    assert "same.tsv gives all pairs the same score" in outcome.err
    assert "undefined" in outcome.out
    assert "0.00" not in outcome.out
    base, trained = json.loads(Path("out.json").read_text())["results"]
    assert base["scores"] == {"same.tsv": None}
    assert base["average"] is None
    assert base["intervals"]["same.tsv"] == {
        "low": None,
        "high": None,
        "undefined_resamples": 2000,
    }
    assert trained["difference"]["average"]["p"] is None
    outcome = run(*arguments, "--fail-under", "-101")
    assert outcome.code == 1
    assert "no average is defined" in outcome.err


def test_one_pair_is_undefined_as_well(space, here):
    Path("one.tsv").write_text("3\ta cat\ta dog\n")
    outcome = done("eval", "sts", "--data", "one.tsv", "--model", space / "base")
    assert "one.tsv has one pair" in outcome.err
    assert "undefined" in outcome.out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "sentence1,sentence2\na,b\n", "no `score`"),
        ("a.jsonl", '{"score": NaN, "sentence1": "a", "sentence2": "b"}\n', "not a finite number"),
        ("a.tsv", "1\ta\n", "2 columns instead of 3"),
        ("a.tsv", "", "no pairs"),
    ],
)
def test_files_of_pairs_with_faults_start_nothing(space, here, name, text, message):
    Path(name).write_text(text)
    outcome = refused(3, "eval", "sts", "--data", name, "--model", space / "base")
    assert message in outcome.err
    assert name in outcome.err


@pytest.mark.parametrize("options", [["--tasks", "STSB"], ["--protocol", "mteb"]])
def test_options_of_the_sets_are_refused_for_a_file(space, here, options):
    arguments = ["eval", "sts", "--data", space / "dev.tsv", "--model", space / "base"]
    assert f"leave out {options[0]}" in refused(2, *arguments, *options).err


# geometry


def test_geometry_of_the_benchmark_has_positives_and_a_score(space, here):
    document = done(
        *["--json", "eval", "geometry", "--data", space / "sts", "--model", space / "base"],
        *["--method", "prompteol", "--method", "mean", "--adapter-path", space / "run"],
        *["--out", "geometry.json"],
    ).document
    assert json.loads(Path("geometry.json").read_text()) == document
    assert [row["system"] for row in document["results"]] == [
        "base prompteol",
        "base mean",
        "run prompteol",
    ]
    pairs = read_sts_file(space / "sts" / "STSB" / "test.tsv")
    texts = list(dict.fromkeys(text for p in pairs for text in (p.sentence1, p.sentence2)))
    positives = [
        (texts.index(p.sentence1), texts.index(p.sentence2)) for p in pairs if p.score >= 4
    ]
    vectors = Encoder.load(space / "base").encode(texts)
    expected = measure_geometry(vectors, np.array(positives))
    found = document["results"][0]
    assert (found["num_positives"], document["positives_from"]) == (len(positives), 4) == (2, 4)
    assert {name: found[name] for name in asdict(expected)} == asdict(expected)
    scores = done("--json", *of_sets(space)).document["results"][0]["scores"]
    assert found["spearman"] == pytest.approx(scores["STSB"], abs=1e-3)
    assert found["encoder"]["method"] == "prompteol"


def test_geometry_of_plain_text_has_no_alignment(space, here):
    Path("notes.txt").write_text("A cat sleeps.\n\nTwo dogs run\nA cat sleeps.\n  \nHe reads\n")
    arguments = ["eval", "geometry", "--data", "notes.txt", "--model", space / "base"]
    found = done("--json", *arguments).document
    (row,) = found["results"]
    assert (found["data"], found["texts"], row["num_vectors"]) == ("notes.txt", 3, 3)
    assert row["alignment"] is row["spearman"] is found["positives_from"] is None
    assert -4 < row["uniformity"] < 0
    told = done(*arguments).out
    assert "geometry of 3 sentences (notes.txt)" in told
    assert "undefined" in told
    assert "so few sentences bound" in told


def test_geometry_of_mapped_vectors_of_another_layer(space, here):
    Path("fit.txt").write_text("".join(f"Sentence number {i} is here.\n" for i in range(40)))
    arguments = ["--json", "eval", "geometry", "--data", space / "dev.tsv"]
    arguments += ["--model", space / "base"]
    found = {}
    for options in (
        (),
        ("--layer", "1"),
        ("--layer", "1", "--post", "abtt", "--post-fit", "fit.txt"),
    ):
        (found[len(options)],) = done(*arguments, *options).document["results"]
    assert [row["encoder"]["layer"] for row in found.values()] == [-1, 1, 1]
    assert found[6]["encoder"]["post"]["kind"] == "abtt"
    assert len({row["uniformity"] for row in found.values()}) == 3


def test_positives_go_by_score(space, here):
    arguments = ["--json", "eval", "geometry", "--data", space / "dev.tsv", "--no-base"]
    arguments += ["--adapter-path", space / "run"]
    for least, count in (("4", 4), ("0.5", 12), ("6", 0)):
        (row,) = done(*arguments, "--positives-from", least).document["results"]
        assert row["num_positives"] == count
        assert (row["alignment"] is None) == (count == 0)


def test_one_sentence_has_little_geometry(space, here):
    Path("one.txt").write_text("A cat sleeps.\n")
    outcome = done("eval", "geometry", "--data", "one.txt", "--model", space / "base")
    assert outcome.out.count("undefined") >= 5
    assert "nan" not in outcome.out


# adapters


def test_adapters_of_one_name_are_told_apart(space, here):
    for folder in ("a", "b"):
        shutil.copytree(space / "run", Path(folder, "adapters"))
    runs = ("--adapter-path", "a/adapters", "--adapter-path", "b/adapters", "--no-base")
    rows = done("--json", "eval", "sts", "--data", space / "dev.tsv", *runs).document["results"]
    assert [row["system"] for row in rows] == ["a/adapters prompteol", "b/adapters prompteol"]
    generation = ("eval", "generation", "--text", space / "dev.tsv", *runs)
    rows = done("--json", *generation).document["results"]
    assert [row["system"] for row in rows] == ["a/adapters", "b/adapters"]


@pytest.mark.parametrize("command", ["sts", "geometry", "tokens"])
def test_pairs_that_are_read_are_not_written_over(space, here, command):
    shutil.copytree(space / "sts", "sts")
    shutil.copy(space / "dev.tsv", here)
    before = files_below(here)
    for data, out in (("dev.tsv", "dev.tsv"), ("sts", "sts/STSB/test.tsv")):
        line = ("eval", command, "--data", data, "--out", out, "--model", space / "base")
        assert "is read, so it is not written" in refused(2, *line).errors[0]
    assert files_below(here) == before


def test_a_link_is_called_as_it_was_named(space, here):
    Path("latest").symlink_to(space / "run")
    line = ("eval", "sts", "--data", space / "dev.tsv", "--adapter-path", "latest", "--no-base")
    (row,) = done("--json", *line, "--adapter-scale", 1).document["results"]
    assert row["system"] == "latest prompteol"


def test_the_folder_one_is_in_has_a_name(space, here, monkeypatch):
    shutil.copytree(space / "run", "mine")
    monkeypatch.chdir("mine")
    line = ("eval", "sts", "--data", space / "dev.tsv", "--adapter-path", ".", "--no-base")
    rows = done("--json", *line).document["results"]
    assert [row["system"] for row in rows] == ["mine prompteol"]


def test_a_map_of_another_scale_is_left_out_with_a_remark(space, here, tmp_path):
    encoder = Encoder.load(space / "run")
    post, _ = fit_after(encoder, ["A cat", "A dog", "Two men"], "standardize", 0, folder=tmp_path)
    shutil.copytree(space / "run", "mapped")
    Encoder(encoder.loaded, replace(encoder.settings, post=post)).save_settings(here / "mapped")
    own = encoder.settings.adapter_scale
    scales = ("--adapter-scale", own, "--adapter-scale", "0.7", "--no-base")
    line = ("eval", "sts", "--data", space / "dev.tsv", "--adapter-path", "mapped", *scales)
    assert "mapped x0.7: without the standardize fitted at another scale" in done(*line).err
    at_own, other = done("--json", *line).document["results"]
    assert at_own["encoder"]["post"]["kind"] == "standardize"
    assert other["encoder"]["post"] is None


# tokens


def test_key_tokens_are_shown_and_counted(space, here):
    Path("notes.txt").write_text("A cat sleeps.\nTwo dogs run\nA \x1b[31mman\n")
    arguments = ["eval", "tokens", "--data", "notes.txt", "--model", space / "base", "--top", "5"]
    arguments += ["--adapter-path", space / "run"]
    document = done("--json", *arguments, "--show", "2").document
    base, trained = document["results"]
    assert (document["texts"], document["top"]) == (3, 5)
    expected = find_key_tokens(
        Encoder.load(space / "base"), ["A cat sleeps.", "Two dogs run", "A \x1b[31mman"], top=5
    )
    assert base["exact"] == asdict(measure_alignment(expected))
    assert base["folded"]["hit"] >= base["exact"]["hit"]
    assert [each["text"] for each in base["shown"]] == ["A cat sleeps.", "Two dogs run"]
    assert [t["id"] for t in base["shown"][0]["tokens"]] == list(expected.aligned[0][:5])
    assert trained["shown"] != base["shown"]
    told = done(*arguments).out
    assert "A cat sleeps.\n  base prompteol  " in told
    assert "\n  run prompteol   " in told
    assert "\x1b" not in told
    assert f"{base['exact']['lar']:.3f}" in told
    assert "Hit@5" in told
    assert "aligned words" not in done(*arguments, "--show", "0").out


def test_methods_that_read_inner_layers_are_left_out(space, here):
    Path("notes.txt").write_text("A cat sleeps.\nTwo dogs run\n")
    line = ("eval", "tokens", "--data", "notes.txt", "--model", space / "base")
    outcome = done(*line, "--method", "ke", "--method", "prompteol")
    assert "base ke is left out" in outcome.err
    assert "base prompteol" in outcome.out
    assert "nothing to measure" in refused(2, *line, "--method", "ke").err


def test_words_in_the_sentence_are_marked(space, here):
    """Each word once, whatever its case or the blank before it; what nobody can read is escaped."""
    tokens = [
        {"id": 1, "text": " Cat", "in_text": True},
        {"id": 2, "text": "cat", "in_text": True},
        {"id": 3, "text": "\n", "in_text": False},
        {"id": 4, "text": "  ", "in_text": False},
        {"id": 5, "text": "", "in_text": False},
        {"id": 6, "text": "x" * 40, "in_text": False},
    ]
    assert _words(tokens) == "Cat*  \\n  ␣␣  <5>"


# both


@pytest.mark.parametrize("command", ["geometry", "tokens"])
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.txt", "\n \n", "no sentences"),
        ("a.csv", "sentence1,sentence2\na,b\n", "no `score`"),
        ("binary.txt", "a\0b\n", "a NUL byte"),
        ("nowhere.txt", None, "no such file or folder"),
    ],
)
def test_sentences_that_cannot_be_read_are_told(space, here, command, name, text, message):
    if text is not None:
        Path(name).write_text(text)
    outcome = refused(3, "eval", command, "--data", name, "--model", space / "base")
    assert message in outcome.err


@pytest.mark.parametrize("command", ["geometry", "tokens"])
def test_a_broken_encoder_is_called_so(space, here, command, monkeypatch):
    monkeypatch.setattr(
        Encoder, "encode", lambda self, texts, **_: np.full((len(texts), 32), np.nan, np.float32)
    )
    Path("notes.txt").write_text("A cat\nA dog\n")
    outcome = refused(1, "eval", command, "--data", "notes.txt", "--model", space / "base")
    assert "base prompteol" in outcome.err
    assert "NaN or infinity" in outcome.err


def test_scores_of_a_broken_encoder_are_undefined(space, here, monkeypatch):
    encode = Encoder.encode

    def broken(self, texts, **options):
        vectors = encode(self, texts, **options)
        vectors[0, 0] = np.nan
        return vectors

    monkeypatch.setattr(Encoder, "encode", broken)
    Path("a.tsv").write_text("3\ta cat\ta dog\n2\tb\tc\n1\tx\ty\n")
    outcome = done("eval", "sts", "--data", "a.tsv", "--model", space / "base")
    assert "base prompteol: undefined on a.tsv: some vectors hold NaN" in outcome.err
    assert outcome.out.count("undefined") == 2


def test_an_adapter_is_measured_as_it_embeds(space, here):
    shutil.copytree(space / "run", "mine")
    settings = json.loads(Path("mine/encoder.json").read_text()) | {"adapter_scale": 0.3}
    Path("mine/encoder.json").write_text(json.dumps(settings))
    line = ("--json", "eval", "sts", "--data", space / "dev.tsv", "--adapter-path", "mine")
    (row,) = done(*line, "--no-base").document["results"]
    assert row["system"] == "mine x0.3 prompteol"
    assert row["encoder"]["adapter_scale"] == 0.3
    text = ("eval", "generation", "--text", space / "dev.tsv", "--adapter-path", "mine")
    (row,) = done("--json", *text, "--no-base").document["results"]
    assert (row["system"], row["adapter_scale"]) == ("mine x0.3", 0.3)
    Path("mine/encoder.json").write_text('{"adapter_scale": 0.3}')  # it embeds no more
    assert done("--json", *text, "--no-base").document["results"] == [row]
    Path("mine/encoder.json").write_text("{}")
    assert "not an encoder file" in refused(1, *text, "--no-base").errors[0]
