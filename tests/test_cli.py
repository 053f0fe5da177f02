import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from sempa_mlx import __version__, runtime
from sempa_mlx.commands import chosen_encoder, doctor
from sempa_mlx.commands.signals import stop_requests
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.encoder.store import WINDOW
from sempa_mlx.evaluation.generation import text_perplexity
from sempa_mlx.model.load import load_model
from sempa_mlx.training.trainer import Trainer
from tests.command import (
    SENTENCES,
    done,
    files_below,
    refused,
    run,
    training,
    write_inputs,
    write_pairs,
)
from tests.processes import python
from tests.tiny import write_tiny_folder

PROGRAM = "from sempa_mlx.__main__ import run; run()"
FAULTY_ROWS = (
    '{"anchor": "a b", "entailment": "c", "contradiction": "d"}\n'
    "not json\n"
    '{"anchor": "a"}\n'
    '{"anchor": "a", "entailment": "", "contradiction": "d"}\n'
)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """Models, data and a finished run; tests write elsewhere."""
    folder = write_inputs(tmp_path_factory.mktemp("space"))
    write_tiny_folder(folder / "other", seed=5)
    write_tiny_folder(folder / "wider", hidden_size=64)
    write_pairs(folder / "sts" / "STSB" / "test.tsv", 9)
    for part in ("a", "b"):
        write_pairs(folder / "sts" / "STS12" / f"{part}.tsv", 7)
    (folder / "notes.txt").write_text("".join(f"{text}\n" for text in SENTENCES))
    done(*training(folder), "--adapter-path", folder / "run")
    return folder


@pytest.fixture(scope="module")
def vectors(space):
    return Encoder.load(space / "run").encode(SENTENCES)


def read_lines(text):
    return [json.loads(line) for line in text.split("\n") if line]


# embed


def test_a_file_becomes_an_array_beside_it(space, here, vectors):
    shutil.copy(space / "notes.txt", here)
    outcome = done("embed", "notes.txt", "--adapter-path", space / "run")
    assert outcome.out == "notes.txt.npy\n"
    assert np.load("notes.txt.npy").shape == (6, 32)
    np.testing.assert_allclose(np.load("notes.txt.npy"), vectors, atol=1e-5)
    described = json.loads(Path("notes.txt.json").read_text())
    assert (described["count"], described["dim"]) == (6, 32)
    assert described["model"]["name"] == str(space / "base")
    beside = [f"notes.txt.{ending}" for ending in ("ids.npy", "json", "npy")]
    assert sorted(files_below(here)) == ["notes.txt", *beside]
    next_command = outcome.err.rsplit("search in it:  sempa-mlx ", 1)[1]
    assert SENTENCES[0] in done(*shlex.split(next_command)).out


def test_stdin_becomes_json_lines_on_stdout(space, here, vectors):
    text = (space / "notes.txt").read_bytes()
    outcome = done("embed", "-", "--adapter-path", space / "run", stdin=text)
    rows = read_lines(outcome.out)
    assert [row["text"] for row in rows] == list(SENTENCES)
    np.testing.assert_allclose([row["embedding"] for row in rows], vectors, atol=1e-5)
    assert "model: " in outcome.err
    assert files_below(here) == {}


def test_a_file_can_go_to_stdout_and_stdin_to_a_file(space, here, vectors):
    outcome = done("embed", space / "notes.txt", "-o", "-", "--adapter-path", space / "run")
    assert len(read_lines(outcome.out)) == 6
    text = (space / "notes.txt").read_bytes()
    done("embed", "-", "-o", "out.npy", "--adapter-path", space / "run", stdin=text)
    np.testing.assert_allclose(np.load("out.npy"), vectors, atol=1e-5)


def test_a_run_in_the_folder_adapters_is_used_without_being_named(space, here, vectors):
    shutil.copytree(space / "run", here / "adapters")
    done("embed", space / "notes.txt", "-o", "run.npy")
    np.testing.assert_allclose(np.load("run.npy"), vectors, atol=1e-5)
    done("embed", space / "notes.txt", "-o", "base.npy", "--model", space / "base")
    base = Encoder.load(space / "base").encode(SENTENCES)
    np.testing.assert_allclose(np.load("base.npy"), base, atol=1e-5)
    assert np.abs(base - vectors).max() > 1e-3


def test_without_a_run_the_default_model_is_used(space, here, monkeypatch):
    monkeypatch.setattr(chosen_encoder, "DEFAULT_MODEL", str(space / "other"))
    done("embed", space / "notes.txt", "-o", "a.npy")
    expected = Encoder.load(space / "other").encode(SENTENCES)
    np.testing.assert_allclose(np.load("a.npy"), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--no-normalize"], {"normalize": False}),
        (["--truncate-dim", "5"], {"truncate_dim": 5}),
        (["--no-normalize", "--truncate-dim", "5"], {"normalize": False, "truncate_dim": 5}),
        (["--adapter-scale", "0"], {"adapter_scale": 0.0}),
        (["--adapter-scale", "0.5"], {"adapter_scale": 0.5}),
        (["--method", "weighted-mean"], {"method": "weighted-mean"}),
        (["--batch-tokens", "64"], {}),
    ],
)
def test_options_reach_the_encoder(space, here, options, settings):
    done("embed", space / "notes.txt", "-o", "a.npy", "--adapter-path", space / "run", *options)
    expected = Encoder.load(space / "run", settings=EncoderSettings(**settings)).encode(SENTENCES)
    np.testing.assert_allclose(np.load("a.npy"), expected, atol=1e-5)
    described = json.loads(Path("a.json").read_text())
    assert all(described[name] == value for name, value in settings.items())


def test_jsonl_goes_by_ending_or_by_wish(space, here):
    arguments = ["embed", space / "notes.txt", "--model", space / "base"]
    done(*arguments, "-o", "a.jsonl")
    done(*arguments, "-o", "b.txt", "--format", "jsonl")
    assert Path("a.jsonl").read_bytes() == Path("b.txt").read_bytes()
    assert len(read_lines(Path("a.jsonl").read_text())) == 6
    assert sorted(files_below(here)) == ["a.jsonl", "a.jsonl.json", "b.txt", "b.txt.json"]


def test_json_and_quiet_modes_of_embed(space, here):
    arguments = ["embed", space / "notes.txt", "--model", space / "base"]
    outcome = done(*arguments, "-o", "a.npy", "--json")
    assert outcome.document == {
        "path": "a.npy",
        "sidecar": "a.json",
        "count": 6,
        "dim": 32,
        "truncated": 0,
    }
    assert outcome.err == ""
    quiet = done("--quiet", *arguments, "-o", "b.npy")
    assert (quiet.out, quiet.err) == ("b.npy\n", "")


def test_cut_texts_are_warned_of_once(space, here, caplog):
    long = b"word after word " * 200
    text = long + b"\nshort\n" + long + b"again\n"
    outcome = done("embed", "-", "--model", space / "base", stdin=text)
    warned = [line for line in outcome.err.splitlines() if "warning" in line]
    assert warned == ["warning: 2 texts were longer than 512 tokens and cut at the end"]
    assert caplog.text == "", "transformers must not add a warning of its own"


def test_what_is_there_is_kept_unless_forced(space, here):
    arguments = ["embed", space / "notes.txt", "-o", "a.npy", "--model", space / "base"]
    Path("a.npy").write_text("precious")
    assert "--force" in refused(2, *arguments).err
    assert files_below(here) == {"a.npy": b"precious"}
    done(*arguments, "--force")
    assert np.load("a.npy").shape == (6, 32)


def test_the_file_beside_the_array_is_kept_unless_forced(space, here):
    arguments = ["embed", space / "notes.txt", "-o", "a.npy", "--model", space / "base"]
    Path("a.json").write_text("precious")
    assert "a.json exists" in refused(2, *arguments).err
    assert files_below(here) == {"a.json": b"precious"}
    done(*arguments, "--force")


@pytest.mark.parametrize(("source", "out"), [("a.json", "a.npy"), ("a.npy", "a.npy")])
def test_not_even_force_writes_over_what_is_being_read(space, here, source, out):
    Path(source).write_text("precious text\n")
    arguments = ["embed", source, "-o", out, "--model", space / "base", "--force"]
    assert "is the file to embed" in refused(2, *arguments).err
    assert files_below(here) == {source: b"precious text\n"}


# eval


def test_systems_are_compared_side_by_side(space, here):
    outcome = done(
        *["--json", "eval", "sts", "--data", space / "sts", "--tasks", "STSB,STS12"],
        *["--model", space / "base", "--method", "prompteol", "--method", "mean"],
        *["--adapter-path", space / "run", "--adapter-scale", "0", "--adapter-scale", "1"],
        *["--out", "results.json"],
    )
    document = outcome.document
    assert document["pairs"] == {"STSB": 9, "STS12": 14}
    names = [row["system"] for row in document["results"]]
    assert names == ["base prompteol", "base mean", "run x0 prompteol", "run prompteol"]
    base, mean, off, on = (row["scores"] for row in document["results"])
    assert off == base, "scale 0 is the base"
    assert on != base
    assert mean != base
    for row in document["results"]:
        assert row["average"] == pytest.approx(sum(row["scores"].values()) / 2, abs=1e-3)
        assert row["protocol"] == "senteval"
    assert json.loads(Path("results.json").read_text()) == document
    assert document["machine"]["device"]
    assert document["versions"]["mlx"]


def test_people_get_a_table(space, here):
    outcome = done(
        *["eval", "sts", "--data", space / "sts", "--tasks", "STSB", "--model", space / "base"],
    )
    found = re.search(r"base prompteol +(-?\d+\.\d\d) +(-?\d+\.\d\d)", outcome.out)
    assert found, outcome.out
    assert found[1] == found[2], "with one task the average is its score"
    assert "Spearman x 100" in outcome.out
    assert "pairs: STSB 9" in outcome.out
    assert files_below(here) == {}


@pytest.mark.parametrize(("bound", "code"), [("-101", 0), ("101", 1)])
def test_a_bound_on_the_average_decides_the_exit_code(space, here, bound, code):
    outcome = run(
        *["eval", "sts", "--data", space / "sts", "--tasks", "STSB", "--model", space / "base"],
        *["--fail-under", bound, "--out", "results.json"],
    )
    assert outcome.code == code
    assert ("is under 101" in outcome.err) == bool(code)
    assert Path("results.json").is_file(), "the results are written either way"


def test_generators_are_compared_by_perplexity(space, here):
    Path("text.txt").write_text("A man reads two books.\nThe children sleep.\n" * 20)
    document = done(
        *["--json", "eval", "generation", "--text", "text.txt", "--adapter-path", space / "run"],
        *["--adapter-scale", "0", "--adapter-scale", "1", "--max-tokens", "300"],
    ).document
    base, off, on = document["results"]
    assert [row["system"] for row in document["results"]] == ["base", "run x0", "run"]
    assert off["perplexity"] == base["perplexity"]
    assert on["perplexity"] != base["perplexity"]
    assert (base["num_tokens"], base["num_scored"]) == (300, 299)
    loaded = load_model(str(space / "base"))
    text = "\n".join(Path("text.txt").read_text().splitlines())
    tokens = loaded.tokenizer.encode(text, verbose=False)[:300]
    assert base["perplexity"] == pytest.approx(text_perplexity(loaded.model, tokens).perplexity)


def test_a_text_longer_than_the_model_takes_is_no_reason_to_warn(space, here, caplog):
    Path("text.txt").write_text("A man reads two books.\n" * 100)
    done("eval", "generation", "--text", "text.txt", "--model", space / "base")
    assert caplog.text == ""


# export


def test_an_export_is_the_adapter_as_trained(space, here):
    outcome = done("export", "--to", "mlx", "--adapter-path", space / "run", "--out", "out")
    assert outcome.out == "out\n"
    assert sorted(files_below(here)) == [
        "out",
        "out/adapter_config.json",
        "out/adapters.safetensors",
        "out/encoder.json",
    ]
    for name in ("adapters.safetensors", "encoder.json"):
        assert Path("out", name).read_bytes() == (space / "run" / name).read_bytes()
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert config["model"] == str(space / "base")
    assert config["fine_tune_type"] == "lora"
    assert "python -m mlx_lm generate" in outcome.err
    done("embed", space / "notes.txt", "-o", "a.npy", "--adapter-path", "out")
    expected = Encoder.load(space / "run").encode(SENTENCES)
    np.testing.assert_allclose(np.load("a.npy"), expected, atol=1e-5)


def test_an_export_takes_no_folder_that_holds_something(space, here):
    Path("out").mkdir()
    Path("out/file").write_text("precious")
    refused(2, "export", "--to", "mlx", "--adapter-path", space / "run", "--out", "out")
    assert files_below(here) == {"out": None, "out/file": b"precious"}


# data, doctor, version


def test_sound_data_is_counted(space):
    outcome = done("data", "check", space / "pairs.jsonl")
    assert "triplets, 12 rows, 12 kept" in outcome.out
    assert "sempa-mlx train --data" in outcome.err
    document = done("--json", "data", "check", space / "pairs.jsonl").document
    assert (document["rows"], document["kept"], document["format"]) == (12, 12, "triplets")


def test_faulty_data_is_listed_fault_by_fault(here):
    Path("rows.jsonl").write_text(FAULTY_ROWS)
    outcome = run("data", "check", "rows.jsonl")
    assert outcome.code == 3
    assert [line.split(": ")[1] for line in outcome.errors] == [
        "rows.jsonl:2",
        "rows.jsonl:3",
        "rows.jsonl:3",
        "rows.jsonl:4",
    ]
    assert "4 problems" in outcome.err
    document = run("--json", "data", "check", "rows.jsonl").document
    assert document["error"]["code"] == 3
    assert [problem["place"] for problem in document["error"]["problems"]] == [
        "rows.jsonl:2",
        "rows.jsonl:3",
        "rows.jsonl:3",
        "rows.jsonl:4",
    ]


def test_a_file_without_a_sound_row_has_no_format(here):
    Path("rows.jsonl").write_text('{"anchor": "a"}\n')
    assert run("data", "check", "rows.jsonl").out.startswith("rows.jsonl: 1 rows, 0 kept\n")


def test_versions_are_told():
    lines = dict(line.split(" ", 1) for line in done("--version").out.splitlines())
    assert lines["sempa-mlx"] == __version__
    assert {"python", "mlx", "mlx-lm", "transformers"} < lines.keys()


@pytest.mark.parametrize(("rate", "is_well"), [(200.0, True), (5.0, False)])
def test_the_doctor_looks_at_the_machine(monkeypatch, rate, is_well):
    monkeypatch.setattr(runtime, "matmul_gflops", lambda dtype: rate)
    document = done("--json", "doctor").document
    assert document["matrix product"]["ok"] is is_well
    assert document["matrix product"]["value"].startswith(f"{rate:.0f} GFLOP/s")
    assert {"device", "memory", "free disk", "mlx", "model smollm2-135m"} < document.keys()
    told = done("doctor").out
    assert ("!!  matrix product" in told) is not is_well
    assert ("sempa-mlx[cpu]" in told) is not is_well


def test_the_doctor_names_the_hubs_cache_and_the_extras(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "matmul_gflops", lambda dtype: 200.0)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(doctor.EXTRAS, "parquet", ("no_such_module",))
    (tmp_path / "models--owner--name").mkdir()
    document = done("--json", "doctor").document
    assert document["Hub cache"]["value"] == (
        f"{tmp_path}: 1 models and data sets; offline, as HF_HUB_OFFLINE is set"
    )
    assert document["extras"]["value"].startswith("serve")
    assert "parquet" not in document["extras"]["value"]


# what users get wrong


def test_settings_that_are_wrong_are_told_all_at_once(space, here):
    Path("sempa.yaml").write_text("train:\n  itres: 3\n  seed: many\nmodle:\n  name: a\n")
    outcome = refused(2, *training(space, "lora.rank=0"), "-c", "sempa.yaml")
    assert [line.split(": ")[1] for line in outcome.errors] == [
        "sempa.yaml:2",
        "sempa.yaml:3",
        "sempa.yaml:4",
        "--set lora.rank",
    ]
    assert "did you mean `iters`" in outcome.err or "did you mean `train.iters`" in outcome.err
    assert sorted(files_below(here)) == ["sempa.yaml"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FAULTY_ROWS.encode(), r"rows\.jsonl:2: not JSON"),
        (b"", r"rows\.jsonl: no rows"),
        (
            b'{"anchor": "a", "entailment": "\xff", "contradiction": "c"}\n',
            r"rows\.jsonl:1: not UTF-8",
        ),
        (b'{"question": "a", "answer": "b"}\n', r"rows\.jsonl:1: the keys fit no known format"),
    ],
    ids=["malformed", "empty", "bad-byte", "unknown-keys"],
)
def test_training_rows_that_are_wrong_start_nothing(space, here, content, message):
    Path("rows.jsonl").write_bytes(content)
    outcome = refused(3, *training(space, data="rows.jsonl"))
    assert re.match(f"error: {message}", outcome.errors[0]), outcome.err
    assert "nothing was started" in outcome.err
    assert sorted(files_below(here)) == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("4.0\ta\tb\nhigh\ta\tb\n1.0\ta\n", r"dev\.tsv:2: the score is not a finite number"),
        ("", r"dev\.tsv: no pairs"),
    ],
    ids=["malformed", "empty"],
)
def test_dev_pairs_that_are_wrong_start_nothing(space, here, content, message):
    Path("dev.tsv").write_text(content)
    outcome = refused(3, *training(space, dev="dev.tsv"))
    assert re.match(f"error: {message}", outcome.errors[0]), outcome.err
    assert sorted(files_below(here)) == ["dev.tsv"]


def test_files_that_are_not_there_are_named(space, here):
    assert "no such file" in refused(3, *training(space, data="nowhere.jsonl")).err
    assert "no such file" in refused(3, *training(space, dev="nowhere.tsv")).err
    assert "no such file" in refused(2, "train", "-c", "nowhere.yaml").err
    assert "no such file" in refused(3, "data", "check", "nowhere.jsonl").err
    assert "no such file" in refused(3, "embed", "nowhere.txt", "--model", space / "base").err
    assert "no such file or folder" in refused(3, "eval", "sts", "--data", "nowhere").err
    assert "no such file" in refused(3, "eval", "generation", "--text", "nowhere.txt").err
    assert files_below(here) == {}


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("smollm-135m", "did you mean `smollm2-135m`"),
        ("./nowhere", "Hub ids look like"),
        ("owner/model", "once online"),
    ],
)
def test_models_that_are_not_there_are_told_apart(space, here, name, fix):
    for arguments in (
        ["embed", space / "notes.txt", "-o", "a.npy", "--model", name],
        ["eval", "sts", "--data", space / "sts", "--tasks", "STSB", "--model", name],
        training(space, model=name),
    ):
        assert fix in refused(1, *arguments).err
    assert files_below(here) == {}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", '{"model_type": "of-the-future"}'),
        ("model.safetensors", "not tensors"),
        ("tokenizer.json", "{"),
    ],
)
def test_a_broken_model_folder_is_named(space, here, file, content):
    shutil.copytree(space / "base", here / "base")
    (here / "base" / file).write_text(content)
    outcome = refused(1, "embed", space / "notes.txt", "-o", "a.npy", "--model", here / "base")
    assert str(here / "base") in outcome.errors[0]
    assert not Path("a.npy").exists()


def test_an_adapter_of_other_weights_is_refused(space, here):
    outcome = refused(
        *[1, "embed", space / "notes.txt", "-o", "a.npy"],
        *["--adapter-path", space / "run", "--model", space / "other"],
    )
    assert len(outcome.errors) == 1
    assert str(space / "base") in outcome.err
    assert str(space / "other") in outcome.err
    assert files_below(here) == {}


def test_an_adapter_of_another_shape_is_refused_with_every_mismatch(space, here):
    outcome = refused(
        *[1, "embed", space / "notes.txt", "-o", "a.npy"],
        *["--adapter-path", space / "run", "--model", space / "wider"],
    )
    shapes = [line for line in outcome.errors if "the model needs" in line]
    assert len(shapes) == 3 * 7  # of each layer either lora_a or lora_b sees the hidden size
    assert "nothing was loaded" in outcome.err


@pytest.mark.parametrize("file", ["adapters.safetensors", "adapter_config.json", "encoder.json"])
def test_a_broken_run_folder_is_named(space, here, file):
    shutil.copytree(space / "run", here / "run")
    whole = (here / "run" / file).read_bytes()
    (here / "run" / file).write_bytes(whole[: len(whole) // 2])
    outcome = refused(
        1, "embed", space / "notes.txt", "-o", "a.npy", "--adapter-path", here / "run"
    )
    assert file in outcome.errors[0]
    assert not Path("a.npy").exists()


@pytest.mark.parametrize("folder", ["base", "sts", "nowhere"])
def test_a_folder_without_an_adapter_never_passes_for_one(space, here, folder):
    for arguments in (
        ["embed", space / "notes.txt", "-o", "a.npy"],
        ["eval", "sts", "--data", space / "sts", "--tasks", "STSB"],
        ["export", "--to", "mlx", "--out", "out"],
    ):
        outcome = refused(1, *arguments, "--adapter-path", space / folder)
        assert "not an adapter folder: missing adapters.safetensors" in outcome.err
    assert files_below(here) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\nbad \xff byte\n", r"texts\.txt:2: not UTF-8"),
        (b"", r"texts\.txt: the file is empty"),
        (b"nul \0 byte\n", r"texts\.txt:1: a NUL byte"),
        ("text".encode("utf-16"), r"texts\.txt:1: UTF-16 text"),
    ],
    ids=["bad-byte", "empty", "nul", "utf-16"],
)
def test_texts_that_cannot_be_read_leave_no_output(space, here, content, message):
    Path("texts.txt").write_bytes(content)
    outcome = refused(3, "embed", "texts.txt", "--model", space / "base")
    assert re.match(f"error: {message}", outcome.errors[0])
    assert sorted(files_below(here)) == ["texts.txt"]


def test_a_bad_byte_beyond_the_first_window_leaves_no_output(space, here):
    """The whole file is looked at before the model is loaded."""
    Path("texts.txt").write_bytes(b"a\n" * (WINDOW + 1) + b"\xff\n")
    outcome = refused(3, "embed", "texts.txt", "--model", "not-even-looked-for")
    assert f"texts.txt:{WINDOW + 2}: not UTF-8" in outcome.err
    assert sorted(files_below(here)) == ["texts.txt"]


def test_output_through_a_link_is_refused(space, here):
    Path("target").write_text("precious")
    Path("link.npy").symlink_to("target")
    arguments = ["embed", space / "notes.txt", "-o", "link.npy", "--model", space / "base"]
    assert "symbolic link" in refused(2, *arguments, "--force").err
    assert Path("target").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "a.txt"], "unknown output format `txt`"),
        (["-o", "-", "--format", "npy"], "stdout takes --format jsonl only"),
        (["-o", "a.npy", "--method", "magic"], "no method `magic`"),
        (["-o", "a.npy", "--truncate-dim", "33"], "1 to 32"),
        (["-o", "a.npy", "--truncate-dim", "0"], "1 to 32"),
    ],
)
def test_options_that_make_no_sense_are_refused(space, here, options, message):
    arguments = ["embed", space / "notes.txt", "--model", space / "base"]
    assert message in refused(2, *arguments, *options).err
    assert files_below(here) == {}


@pytest.mark.parametrize(
    ("tasks", "code", "message"),
    [("STSB,STS13", 3, "no data for STS13"), ("STSX", 2, "unknown STS task")],
)
def test_sts_tasks_that_are_not_there_are_named(space, here, tasks, code, message):
    arguments = ["eval", "sts", "--data", space / "sts", "--model", space / "base"]
    assert message in refused(code, *arguments, "--tasks", tasks).err


def test_errors_are_a_document_in_json_mode(here):
    outcome = run("embed", "nowhere.txt", "--json")
    assert outcome.code == 3
    assert outcome.err == ""
    assert outcome.document["error"]["problems"][0] | {"fix": ""} == {
        "what": "no such file",
        "place": "nowhere.txt",
        "evidence": "",
        "fix": "",
    }


# when things go wrong


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_says_what_is_kept(kind, code, space, here, monkeypatch):
    """The signal comes in the middle of a step, which is finished and saved."""
    whole = Trainer._step

    def interrupted(trainer, step):
        if step == 2:
            signal.raise_signal(kind)
        return whole(trainer, step)

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(Trainer, "_step", interrupted)
    outcome = run(*training(space), "--adapter-path", "run")
    assert outcome.code == code
    assert "stopped after step 2 of 3" in outcome.err
    assert "is in run" in outcome.err
    assert "sempa-mlx train --resume --adapter-path run" in outcome.err
    assert Path("run/adapters.safetensors").is_file()
    assert Path("run/checkpoints/step-000002").is_dir()
    assert not Path("run/results.json").exists()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_does_not_wait(space, here):
    """After the first one the system's own handlers are back: they end a process at once."""
    with stop_requests() as request:
        signal.raise_signal(signal.SIGTERM)
        assert request()
        assert request.exit_code == 143
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_bug_is_called_one_and_leaves_a_log(space, here, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(tempfile, "tempdir", str(here))
    monkeypatch.setattr(Encoder, "encode_counted", broken)
    arguments = ["embed", space / "notes.txt", "-o", "a.npy", "--model", space / "base"]
    outcome = run(*arguments)
    assert outcome.code == 1
    assert outcome.errors == ["error: ZeroDivisionError: division by zero"]
    assert "Traceback" not in outcome.err
    (log,) = here.glob("sempa-mlx-*.log")
    assert str(log) in outcome.err
    assert "in broken" in log.read_text()
    assert sorted(files_below(here)) == [log.name], "nothing half-written"
    with pytest.raises(ZeroDivisionError):
        run("--debug", *arguments)


# streams and start-up: processes of their own


def test_it_speaks_before_it_has_all_of_its_input(space, here):
    command = [sys.executable, "-c", PROGRAM, "embed", "-", "--model", str(space / "base")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr.readline().decode().strip() == "reading stdin"
        process.kill()


@pytest.mark.unmeasured
def test_a_reader_that_goes_away_is_no_error(space, here):
    command = [sys.executable, "-c", PROGRAM, "embed", "-", "--model", str(space / "base")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdin.write(b"".join(b"line %d of a long file\n" % n for n in range(500)))
        process.stdin.close()
        assert json.loads(process.stdout.readline())["text"] == "line 0 of a long file"
        process.stdout.close()
        talk = process.stderr.read().decode()
        assert process.wait() == 0, talk
    assert "Broken" not in talk
    assert "Error" not in talk
    assert "error" not in talk


def test_what_needs_no_mlx_does_not_import_it():
    modules = [
        "sempa_mlx",
        "sempa_mlx.cli",
        "sempa_mlx.config",
        "sempa_mlx.data.preferences",
        "sempa_mlx.data.sources",
        "sempa_mlx.data.sts_sets",
        "sempa_mlx.evaluation.stats",
    ]
    heavy = ["mlx", "mlx_lm", "transformers", "torch", "scipy", "huggingface_hub"]
    code = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [each for each in {heavy} if each in sys.modules]\n"
        "    assert not heavy, (name, heavy)\n"
    )
    found = python("-c", code)
    assert found.returncode == 0, found.stderr.decode()


def test_help_imports_nothing_that_takes_long():
    """No timed assertion: what would make it slow is named instead."""
    found = python("-X", "importtime", "-c", PROGRAM, "--help")
    assert found.returncode == 0
    lines = found.stderr.decode().splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert {"typer", "sempa_mlx"} <= imported
    assert imported.isdisjoint(
        {"mlx", "mlx_lm", "transformers", "tokenizers", "numpy", "scipy", "huggingface_hub"}
    )


def test_help_shows_what_stands_in_brackets():
    """As markup `[default: adapters]` would vanish."""
    assert b"[default: adapters]" in python("-c", PROGRAM, "train", "--help").stdout
    assert b"[default: all]" in python("-c", PROGRAM, "eval", "sts", "--help").stdout


def test_plain_text_into_a_closed_pipe_is_quiet():
    """`true` is gone long before the first line is written."""
    line = f"{sys.executable} -m sempa_mlx config show demo | true; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=200, check=True
    )
    assert ended.stdout == "0\n"
    assert "Traceback" not in ended.stderr


def test_no_base_measures_the_adapters_only(space):
    sts = [
        "eval",
        "sts",
        "--data",
        space / "sts",
        "--tasks",
        "STSB",
        "--adapter-path",
        space / "run",
    ]
    with_base = done(*sts, "--json").document["results"]
    alone = done(*sts, "--no-base", "--json").document["results"]
    assert len(with_base) == 2
    assert alone[0]["scores"] == with_base[1]["scores"]
    assert [row["system"] for row in alone] == [with_base[1]["system"]]
    refused(2, "eval", "sts", "--data", space / "sts", "--no-base", "--tasks", "STSB")


def test_every_fault_is_listed_of_however_many(here):
    Path("rows.jsonl").write_text('{"anchor": "a"}\n' * 150)
    outcome = run("data", "check", "rows.jsonl")
    assert outcome.code == 3
    assert outcome.err.count("the field `entailment` is missing") == 150
    assert "300 problems; mend" in outcome.err


def test_a_run_to_resume_may_be_named_by_its_setting(here):
    for given in ("output.path=elsewhere", " output.path = 'elsewhere'"):
        outcome = refused(2, "train", "--resume", "--set", given)
        assert "elsewhere holds no run to resume" in outcome.err


def test_a_report_that_measures_nothing_takes_no_pairs(here):
    outcome = refused(2, "report", "run", "--no-measure", "--pairs", "5")
    assert "--pairs does nothing" in outcome.err
