"""Fault 17: a base that is quantised, in half precision, or ties its embeddings, is fused.

Every precision and refusal: tests/test_export.py.
"""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.adapters import logits_of, write_run
from tests.command import done, refused
from tests.tiny import write_tiny_folder

WIDE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_hidden_layers": 1}


def quantise(folder, model):
    nn.quantize(model, group_size=32, bits=4)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"group_size": 32, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


def round_to_half(folder, model):
    model.set_dtype(mx.bfloat16)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


@pytest.mark.parametrize(
    ("kind", "change", "bound"),
    [
        ("llama", quantise, 0.05),
        ("llama", round_to_half, 0.1),
        ("llama-untied", lambda folder, model: None, 1e-3),
        ("qwen3", lambda folder, model: None, 1e-3),
    ],
    ids=["4 bits", "bfloat16", "untied", "tied"],
)
def test_the_fused_model_is_base_and_adapter(tmp_path, kind, change, bound):
    base = tmp_path / "base"
    change(base, write_tiny_folder(base, kind, **WIDE))
    run = write_run(tmp_path / "run", base, size=1.0)
    done("export", "--to", "fused", "--adapter-path", run, "--out", tmp_path / "fused")
    expected, plain = logits_of(base, run), logits_of(base)
    found = logits_of(tmp_path / "fused")
    assert np.abs(found - expected).max() < bound * np.abs(expected - plain).max()


def test_what_would_lose_the_adapter_is_refused_with_the_reason(tmp_path):
    base = tmp_path / "base"
    write_tiny_folder(base, **WIDE)
    run = write_run(tmp_path / "run", base, size=1e-3)
    command = ("export", "--to", "fused", "--adapter-path", run, "--out", tmp_path / "fused")
    outcome = refused(1, *command, "--q-bits", 4, "--q-group-size", 32)
    assert "the fused model is not base and adapter" in outcome.errors[0]
    assert "--max-error" in outcome.err
    assert not (tmp_path / "fused").exists()
