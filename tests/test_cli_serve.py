"""`sempa-mlx serve`: what it refuses, what it prints, and how signals end it."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from sempa_mlx.config import LoraConfig
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.model.load import load_model
from sempa_mlx.model.lora import adapter_weights, attach, save_adapter
from sempa_mlx.serve.server import listen
from tests.command import refused
from tests.tiny import move_adapter, write_tiny_folder

KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base and a run folder with an adapter for it."""
    folder = tmp_path_factory.mktemp("serve")
    write_tiny_folder(folder / "base")
    loaded = load_model(str(folder / "base"))
    lora = LoraConfig(rank=4, alpha=8.0)
    attach(loaded.model, lora, seed=1)
    move_adapter(loaded.model, 0.3)
    save_adapter(folder / "run", adapter_weights(loaded.model), lora, loaded)
    return folder


@contextlib.contextmanager
def process(*arguments, **environment):
    """A server of its own."""
    command = [sys.executable, "-m", "sempa_mlx", "serve", "--port", "0", *map(str, arguments)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def ask(url, document=None, **headers):
    body = None if document is None else json.dumps(document).encode()
    headers = {"content-type": "application/json"} | headers
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20) as reply:
        return json.load(reply)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_it_with_its_code(folder, loopback, name, code):
    with process("--adapter-path", folder / "run") as running:
        url = running.stdout.readline().strip()
        request = {"model": "base", "input": "secret words"}
        (row,) = ask(f"{url}/embeddings", request)["data"]
        expected = Encoder.load(folder / "run").encode(["secret words"])
        np.testing.assert_allclose([row["embedding"]], expected, atol=1e-5)
        assert [each["id"] for each in ask(f"{url}/models")["data"]][:2] == ["base", "base:sempa"]
        running.send_signal(getattr(signal, name))
        out, err = running.communicate(timeout=30)
    assert running.returncode == code
    assert out == ""
    assert "POST /v1/embeddings 200" in err
    assert err.endswith("stopped\n")
    assert "secret" not in err
    assert str(folder) not in err.split("Ctrl-C")[1]


def test_json_mode_prints_where_it_is_and_a_key_is_needed(folder, loopback):
    arguments = ("--model", folder / "base", "--json", "--name", "mine")
    with process(*arguments, SEMPA_API_KEY=KEY) as running:
        lines = [running.stdout.readline()]
        while lines[-1] != "}\n":
            lines.append(running.stdout.readline())
        document = json.loads("".join(lines))
        assert document["models"] == {"embeddings": "mine:embed", "chat": ["mine"]}
        assert document["api_key"] is True
        with pytest.raises(urllib.error.HTTPError) as refusal:
            ask(f"{document['url']}/models")
        assert refusal.value.code == 401
        refusal.value.close()
        assert ask(f"{document['url']}/models", authorization=f"Bearer {KEY}")["data"]
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert err == ""


def test_names_that_no_host_header_has_are_refused():
    outcome = refused(2, "serve", "--allow-host", "my.local:80", "--allow-host", "*")
    assert [line.split("`")[1] for line in outcome.errors] == ["my.local:80", "*"]


def test_a_name_that_no_host_can_have_is_told(monkeypatch):
    monkeypatch.setenv("SEMPA_API_KEY", KEY)
    assert "no such host" in refused(2, "serve", "--host", "a..b").err


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(loopback):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        outcome = refused(2, "serve", "--port", port, "--model", "nowhere")
    assert f"127.0.0.1:{port}" in outcome.err
    assert "--port 0" in outcome.err


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::"])
def test_other_machines_are_let_in_only_with_a_key(host, monkeypatch):
    monkeypatch.delenv("SEMPA_API_KEY", raising=False)
    outcome = refused(2, "serve", "--host", host, "--port", 0)
    assert "SEMPA_API_KEY" in outcome.err


@pytest.mark.parametrize("key", ["short", "has blanks in the middle", "schlüsselschlüssel", ""])
def test_keys_that_are_too_weak_are_refused(key, tmp_path, monkeypatch):
    monkeypatch.setenv("SEMPA_API_KEY", key)
    refused(2, "serve", "--port", 0)
    (tmp_path / "key").write_text(key)
    outcome = refused(2, "serve", "--port", 0, "--api-key-file", tmp_path / "key")
    assert not key or key not in outcome.err.replace(str(tmp_path), "")


def test_a_key_file_that_is_not_there_is_told(tmp_path):
    outcome = refused(2, "serve", "--api-key-file", tmp_path / "none")
    assert str(tmp_path / "none") in outcome.err
    refused(2, "serve", "--api-key-file", tmp_path / "none", "--api-key", KEY)


def test_without_the_extra_the_fix_is_told(monkeypatch):
    found = importlib.util.find_spec

    def without(name, *rest):
        return None if name == "uvicorn" else found(name, *rest)

    monkeypatch.setattr("sempa_mlx.commands.serve.find_spec", without)
    outcome = refused(2, "serve")
    assert "uvicorn" in outcome.err
    assert "sempa-mlx[serve]" in outcome.err


def test_a_host_that_is_none_is_told(monkeypatch):
    monkeypatch.setenv("SEMPA_API_KEY", KEY)
    outcome = refused(2, "serve", "--host", "no such host", "--port", 0)
    assert "no such host" in outcome.err
