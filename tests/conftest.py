"""Fixtures for all tests: no network, shared data when it is there."""

import gc
import os
import socket
import sys
import tempfile
from pathlib import Path

# Caches of tests are their own; set before anything reads it, and inherited by processes.
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="sempa-tests-")
# Where a test lets a disk be full, Python itself would leave cut bytecode for all that come after.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

import pytest
from hypothesis import HealthCheck, settings

import sempa_mlx  # noqa: F401 - before any test imports mlx, for the fast BLAS
from sempa_mlx.data import sources

CONNECT = socket.socket.connect

# The same examples in each run, or many new ones: SEMPA_HYPOTHESIS_PROFILE=fuzz.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile(
    "fuzz",
    deadline=None,
    max_examples=2000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("SEMPA_HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_finish() -> None:
    """Leave modules and tests to no collection of garbage: they live as long as the process."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Run tests marked `unmeasured`, and their processes, without coverage's tracer."""
    if not item.get_closest_marker("unmeasured"):
        return (yield)
    tracer, config = sys.gettrace(), os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)
        if config is not None:
            os.environ["COVERAGE_PROCESS_CONFIG"] = config


@pytest.fixture(autouse=True)
def no_network(request, monkeypatch):
    """Refuse every outgoing connection, unless a test is marked `hub`."""
    if request.node.get_closest_marker("hub"):
        return

    def refuse(*_args, **_kwargs):
        raise OSError("tests are offline")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def loopback(no_network, monkeypatch):
    """Allow connections to servers of the test itself, on 127.0.0.1 alone."""

    def connect(self, address):
        if not (isinstance(address, tuple) and address[0] == "127.0.0.1"):
            raise OSError("tests are offline")
        return CONNECT(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data, or skip."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SEMPA_DATA", default))
    if not folder.is_dir():
        pytest.skip("real data not found; set SEMPA_DATA")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny_embedded(tmp_path, monkeypatch) -> Path:
    """The file of a tiny model in place of the embedded one."""
    from sempa_mlx.model import load
    from tests.tiny_gguf import all_metadata, random_tensors, write_gguf

    model = tmp_path / "elsewhere" / "tiny.gguf"
    model.parent.mkdir()
    write_gguf(model, all_metadata(), random_tensors())
    monkeypatch.setattr(load, "embedded_file", lambda _alias: model)
    return model


@pytest.fixture
def short_demo(tmp_path, monkeypatch):
    """The first rows of the demo data in its place."""
    folder = tmp_path / "demo"
    folder.mkdir()
    for path in sources._DEMO.iterdir():
        if path.suffix in (".tsv", ".jsonl", ".txt"):
            rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
            (folder / path.name).write_text("".join(rows[:48]), encoding="utf-8")
    monkeypatch.setattr(sources, "_DEMO", folder)
