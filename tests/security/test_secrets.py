"""Tokens and keys: known to the program, and in nothing that it writes."""

import ast
import os
import re
from pathlib import Path

import huggingface_hub
import pytest

import sempa_mlx
from sempa_mlx import errors
from sempa_mlx.commands import demo
from sempa_mlx.data.sources import training_source
from sempa_mlx.errors import DataError, without_secrets
from tests.command import done, run, training, write_inputs

TOKEN = "hf_" + "SecretOfTheHub" * 2
KEY = "secret-of-the-server-0123"


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("SEMPA_API_KEY", KEY)


def holds_no_secret(text):
    return TOKEN not in text and KEY not in text


def test_secrets_of_the_environment_and_tokens_of_others_are_hidden():
    other = "hf_" + "x" * 30
    text = f"Illegal header b'Bearer {TOKEN}' for {KEY}, not {other}, hf_hub, model_hf_x"
    shown = without_secrets(text)
    assert shown == (
        "Illegal header b'Bearer $HF_TOKEN' for $SEMPA_API_KEY, not hf_…, hf_hub, model_hf_x"
    )


def test_an_empty_variable_hides_nothing(monkeypatch):
    monkeypatch.setenv("SEMPA_API_KEY", " ")
    assert without_secrets("as it is") == "as it is"


def test_what_a_run_writes_and_says_has_no_secret(tmp_path, monkeypatch):
    folder = write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    outcomes = [
        done(*training(folder), "--adapter-path", tmp_path / "run"),
        done("report", tmp_path / "run"),
        done("config", "show", "demo"),
        done("doctor"),
        done("--json", "doctor"),
        done("embed", folder / "dev.tsv", "--adapter-path", tmp_path / "run"),
        done("export", "--to", "encoder", "--adapter-path", tmp_path / "run", "--out", "out"),
    ]
    for outcome in outcomes:
        assert holds_no_secret(outcome.out + outcome.err)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    for path in written:
        content = path.read_bytes()
        assert TOKEN.encode() not in content, path
        assert KEY.encode() not in content, path


def test_the_log_of_a_bug_has_no_secret(monkeypatch, tmp_path):
    def bug(*_args, **_kwargs):
        raise RuntimeError(f"Bearer {TOKEN} and {KEY}")

    monkeypatch.setattr(demo, "run_demo", bug)
    monkeypatch.setattr(errors.tempfile, "tempdir", str(tmp_path))
    outcome = run("demo")
    assert outcome.code == 1
    assert "RuntimeError: Bearer $HF_TOKEN and $SEMPA_API_KEY" in outcome.err
    (log,) = tmp_path.glob("sempa-mlx-*.log")
    assert "Bearer $HF_TOKEN" in log.read_text()
    assert holds_no_secret(log.read_text())
    assert log.stat().st_mode & 0o077 == 0, "others may not read it"


def test_what_the_hub_says_is_shown_without_the_token(monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(f"Illegal header value b'Bearer {TOKEN}'")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(DataError) as error:
        training_source("nli")
    (problem,) = error.value.problems
    assert problem.evidence == "OSError: Illegal header value b'Bearer $HF_TOKEN'"


def test_the_token_is_read_by_the_hubs_library_alone():
    """The package names the variables in `errors`, to hide them, and the key's in `serve`."""
    root = Path(sempa_mlx.__file__).parent
    named = {
        (path.relative_to(root).as_posix(), node.value)
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"[A-Z_]*(TOKEN|API_KEY|SECRET|PASSWORD)", node.value)
    }
    assert named == {
        ("errors.py", "HF_TOKEN"),
        ("errors.py", "HUGGING_FACE_HUB_TOKEN"),
        ("errors.py", "SEMPA_API_KEY"),
        ("commands/serve.py", "SEMPA_API_KEY"),
    }
    assert os.environ["HF_TOKEN"] == TOKEN
