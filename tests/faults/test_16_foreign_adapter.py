"""Fault 16: an adapter of another base, rank or set of layers, or with tensors missing.

Each mismatch: tests/model/test_lora.py.
"""

import json
import shutil

import mlx.core as mx

from tests.command import files_below, refused


def test_all_mismatches_are_told_at_once_and_nothing_is_written(space, here):
    shutil.copytree(space / "run", here / "run")
    path = here / "run" / "adapters.safetensors"
    weights = mx.load(str(path))
    missing, *others = sorted(weights)
    changed = {name: weights[name] for name in others}
    wrong = next(name for name in changed if name.endswith("lora_a"))
    changed[wrong] = mx.zeros((5, 5))
    changed["model.layers.7.mlp.up_proj.lora_a"] = mx.zeros((32, 8))
    mx.save_safetensors(str(path), changed, metadata={"format": "mlx"})
    config = json.loads((here / "run" / "adapter_config.json").read_text())
    config["sempa"]["base_fingerprint"] = "0123456789abcdef"
    (here / "run" / "adapter_config.json").write_text(json.dumps(config))
    before = files_below(here)
    outcome = refused(
        1, "embed", space / "notes.txt", "-o", "a.npy", "--adapter-path", here / "run"
    )
    told = "\n".join(outcome.errors)
    assert "trained on other weights" in told
    assert f"{missing}: missing" in told
    assert f"{wrong}: shape (5, 5), the model needs" in told
    assert "model.layers.7.mlp.up_proj.lora_a: model and config have no such" in told
    assert len(outcome.errors) == 4
    assert "nothing was loaded" in outcome.err
    assert files_below(here) == before


def test_a_rank_that_the_tensors_have_not_is_told_for_each_of_them(space, here):
    shutil.copytree(space / "run", here / "run")
    config = json.loads((here / "run" / "adapter_config.json").read_text())
    config["lora_parameters"]["rank"] = 3
    (here / "run" / "adapter_config.json").write_text(json.dumps(config))
    outcome = refused(
        1, "export", "--to", "fused", "--adapter-path", here / "run", "--out", here / "out"
    )
    assert len(outcome.errors) == 2 * 7
    assert not (here / "out").exists()
