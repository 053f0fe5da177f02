"""Fault 20: the Hub is away, gated, knows no such name, or a download was cut off.

Each answer of the Hub, and the real client without a network: tests/model/test_load.py,
tests/data/test_sources.py.
"""

import json

import huggingface_hub
import pytest

from tests.command import files_below, refused, training
from tests.faults.conftest import SETTINGS
from tests.model.test_load import http_error, hub

PAGE = "owner/model"


@pytest.mark.parametrize(
    ("error", "what", "fix"),
    [
        (http_error(hub.GatedRepoError, 403), "is gated", "hf auth login"),
        (http_error(hub.RepositoryNotFoundError, 404), "no model `owner/model`", "check its name"),
        (hub.LocalEntryNotFoundError("away"), "the Hub cannot be reached", "hf download"),
        (http_error(hub.HfHubHTTPError, 503), "the Hub cannot be reached", "hf download"),
        (OSError(28, "No space left on device", "blobs/abc"), "cannot store the model", "HF_HOME"),
    ],
)
def test_each_answer_is_one_message_with_the_next_command(
    space, here, monkeypatch, error, what, fix
):
    calls = []

    def answer(*_given, **_options):
        calls.append(1)
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    code = 4 if isinstance(error, OSError) and error.errno == 28 else 1
    for command in (
        ["embed", space / "notes.txt", "-o", "a.npy", "--model", PAGE],
        [*training(space, *SETTINGS, model=PAGE), "--adapter-path", "run"],
    ):
        outcome = refused(code, *command)
        (line,) = outcome.errors
        assert what in line
        assert fix in outcome.err
    assert len(calls) == 2, "asked once a command"
    assert files_below(here) == {}


def test_a_cache_with_half_a_model_names_what_is_missing(space, here, monkeypatch):
    cache = here / "cache"
    cache.mkdir()
    for file in (space / "base").iterdir():
        (cache / file.name).write_bytes(file.read_bytes())
    (cache / "model.safetensors").rename(cache / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors",
                            "b": "model-00002-of-00002.safetensors"}}  # fmt: skip
    (cache / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_a, **_o: str(cache))
    outcome = refused(1, "embed", space / "notes.txt", "-o", "a.npy", "--model", PAGE)
    assert "missing: model-00002-of-00002.safetensors" in outcome.errors[0]
