"""Fused models beside base + adapter; the folder that is an encoder; the Hub's part, with fakes."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load as mlx_load

from sempa_mlx.config import LoraConfig
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.fitting import fit_after
from sempa_mlx.errors import ModelError, ResourceError, RunError, UsageError
from sempa_mlx.export.bundle import export_encoder
from sempa_mlx.export.fused import Packing, export_fused
from sempa_mlx.export.hub import push, write_card
from sempa_mlx.model.load import load_model
from sempa_mlx.model.lora import adapter_weights, attach, save_adapter
from tests.command import done, refused
from tests.export.test_peft import KINDS, ROW, ours, write_run
from tests.tiny import move_adapter, write_tiny_folder
from tests.tiny_gguf import all_metadata, random_tensors, write_gguf

TEXTS = ["A cat sleeps on the warm stone.", "", "Two dogs run", 'He said "no".']


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dial", [1.0, 0.25])
def test_a_fused_model_is_base_and_adapter(tmp_path, kind, dial):
    loaded = write_run(tmp_path, kind, scale=dial)
    found = export_fused(tmp_path / "run", tmp_path / "model")
    model, tokenizer = mlx_load(str(tmp_path / "model"))
    expected = ours(loaded, dial)
    np.testing.assert_allclose(np.array(model(mx.array([ROW])))[0], expected, atol=1e-4)
    assert np.abs(expected - ours(loaded, 0)).max() > 0.02
    assert found.error < 1e-6 < 1e-3 < found.effect
    assert found.num_tokens > 500
    assert tokenizer.encode("A cat") == loaded.tokenizer.encode("A cat")


@pytest.mark.interop
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_transformers_opens_it(tmp_path, family):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    loaded = write_run(tmp_path, family=family)
    export_fused(tmp_path / "run", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.inference_mode():
        found = model(torch.tensor([ROW])).logits[0].numpy()
    np.testing.assert_allclose(found, ours(loaded), atol=1e-3)


def test_half_precision_is_proved_too(tmp_path):
    write_run(tmp_path)
    found = export_fused(tmp_path / "run", tmp_path / "model", packing=Packing("bfloat16"))
    assert 1e-8 < found.error < 0.01 * found.effect
    weights = mx.load(str(tmp_path / "model" / "model.safetensors"))
    assert {tensor.dtype for tensor in weights.values()} == {mx.bfloat16}


def test_packing_that_forgets_the_adapter_is_refused_with_figures(tmp_path):
    write_run(tmp_path, scale=0.05)
    packing = Packing(bits=2, group_size=32)
    with pytest.raises(ModelError, match="errs by") as caught:
        export_fused(tmp_path / "run", tmp_path / "model", packing=packing)
    (problem,) = caught.value.problems
    assert "the adapter moves predictions by" in problem.evidence
    assert list(tmp_path.glob(".tmp-*")) == []
    assert not (tmp_path / "model").exists()


def test_eight_bits_pass_and_open_in_mlx_lm(tmp_path):
    loaded = write_run(tmp_path)
    found = export_fused(
        tmp_path / "run", tmp_path / "model", packing=Packing(bits=8, group_size=32)
    )
    assert 0 < found.error <= 0.1 * found.effect + 1e-3
    model, _ = mlx_load(str(tmp_path / "model"))
    assert "QuantizedLinear" in type(model.layers[0].self_attn.q_proj).__name__
    assert np.abs(np.array(model(mx.array([ROW])))[0] - ours(loaded)).max() < 0.2


def test_a_packed_base_is_unpacked_first(tmp_path):
    """Fused into 4 bits again, the update would be rounded away."""
    from mlx_lm.convert import convert

    write_tiny_folder(tmp_path / "plain", hidden_size=64, head_dim=16, intermediate_size=64)
    quantized = {"quantize": True, "q_group_size": 32, "q_bits": 4}
    convert(str(tmp_path / "plain"), str(tmp_path / "base"), **quantized)
    loaded = write_run(tmp_path)
    export_fused(tmp_path / "run", tmp_path / "model")
    model, _ = mlx_load(str(tmp_path / "model"))
    np.testing.assert_allclose(np.array(model(mx.array([ROW])))[0], ours(loaded), atol=1e-4)
    assert "quantization" not in json.loads((tmp_path / "model" / "config.json").read_text())


def test_wrong_packings_are_usage_errors(tmp_path):
    write_run(tmp_path)
    for packing in (Packing("int4"), Packing(bits=7), Packing(bits=4, group_size=48)):
        with pytest.raises(UsageError):
            export_fused(tmp_path / "run", tmp_path / "model", packing=packing)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    write_run(tmp_path)

    def full(*_args, **_options):
        raise RuntimeError("[write] Unable to write 4096 bytes")

    monkeypatch.setattr("sempa_mlx.export.fused.save_model", full)
    with pytest.raises(ResourceError, match="Unable to write"):
        export_fused(tmp_path / "run", tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]


# One folder that is an encoder


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_an_encoder_opens_elsewhere_bit_for_bit(tmp_path, kind, monkeypatch):
    if kind == "gguf":
        write_gguf(tmp_path / "base.gguf", all_metadata(), random_tensors())
        loaded = load_model(str(tmp_path / "base.gguf"), dtype="float32")
        lora = LoraConfig(rank=4, alpha=8.0)
        attach(loaded.model, lora, seed=3)
        move_adapter(loaded.model, 0.3)
        save_adapter(tmp_path / "run", adapter_weights(loaded.model), lora, loaded)
    else:
        write_run(tmp_path, scale=0.5)
    encoder = Encoder.load(tmp_path / "run")
    post, _ = fit_after(encoder, TEXTS * 2, "standardize", 0, folder=tmp_path / "fits")
    mapped = Encoder(encoder.loaded, replace(encoder.settings, post=post))
    mapped.save_settings(tmp_path / "run")
    before = mapped.encode(TEXTS)
    export_encoder(tmp_path / "run", tmp_path / "all")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "all", tmp_path / "elsewhere" / "moved")
    for gone in ("run", "base", "base.gguf", "fits"):
        path = tmp_path / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = Encoder.load("moved")
    assert np.array_equal(found.encode(TEXTS), before)
    assert found.vectors_key == mapped.vectors_key
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    done("embed", tmp_path / "a.txt", "--adapter-path", "moved")
    assert np.array_equal(np.load(tmp_path / "a.txt.npy"), before)


def test_a_run_whose_base_changed_is_not_bundled(tmp_path):
    write_run(tmp_path)
    shutil.rmtree(tmp_path / "base")
    write_tiny_folder(tmp_path / "base", seed=9)
    with pytest.raises(ModelError, match="other weights"):
        export_encoder(tmp_path / "run", tmp_path / "all")
    assert not (tmp_path / "all").exists()


# The Hub


class FakeApi:
    """Takes note of what would be uploaded."""

    def __init__(self, error=None):
        self.error, self.calls = error, []

    def create_repo(self, repo, **options):
        self.calls.append((repo, options))

    def upload_folder(self, **options):
        if self.error:
            raise self.error
        self.calls.append(options)
        return SimpleNamespace(commit_url="https://hub/commit/1")


@pytest.fixture
def hub(monkeypatch):
    fake = FakeApi()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


def test_push_uploads_the_folder_with_a_card(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    write_run(tmp_path)
    results = {"metric": "spearman", "base_dev_score": 70.0, "best_dev_score": 75.125}
    results |= {"best_step": 40, "best_scale": 0.5, "pairs": 4096, "seconds": 60.0}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    run = ["--adapter-path", tmp_path / "run", "--out", tmp_path / "out"]
    told = done("export", "--to", "peft", *run, "--push", "me/sempa", "--private")
    (repo, options), upload = hub.calls
    assert (repo, options["private"]) == ("me/sempa", True)
    assert upload["folder_path"] == tmp_path / "out"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| base | 70.00 |" in card
    assert "| trained, step 40, scale 0.5 | 75.12 |" in card
    assert "chosen on these very pairs" in card
    assert "hf_secret" not in card + told.out + told.err
    assert "https://hub/commit/1" in told.err


def test_a_card_tells_only_what_is_known(tmp_path):
    write_run(tmp_path)
    (tmp_path / "out").mkdir()
    write_card(tmp_path / "out", tmp_path / "run", "mlx", "org/base", "me/it")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model: org/base\nlibrary_name: mlx\ntags:\n")
    assert "Measured" not in card


def test_a_hub_that_refuses_is_one_line_and_the_folder_stays(tmp_path, hub):
    hub.error = OSError("no network\nsecond line")
    (tmp_path / "out").mkdir()
    with pytest.raises(RunError, match="no network") as caught:
        push(tmp_path / "out", "me/it")
    assert "second line" not in str(caught.value)
    assert (tmp_path / "out").is_dir()


def test_a_name_the_hub_cannot_have_is_refused_first(tmp_path):
    write_run(tmp_path)
    run = ["--adapter-path", tmp_path / "run", "--out", tmp_path / "out"]
    for name in ("me", "me/it/now", "me/ it"):
        refused(2, "export", "--to", "mlx", *run, "--push", name)
    assert not (tmp_path / "out").exists()


def test_export_takes_a_fused_model_from_the_line(tmp_path):
    write_run(tmp_path)
    run = ["--adapter-path", tmp_path / "run", "--out", tmp_path / "out"]
    found = done("export", "--to", "fused", *run, "--dtype", "bfloat16", "--json").document
    assert found["to"] == "fused"
    assert 0 <= found["error"] < 0.01 * found["effect"]
    refused(2, "export", "--to", "fused", *run)
