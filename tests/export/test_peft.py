"""To PEFT and back, beside PEFT itself."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.config import LoraConfig
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.errors import ModelError, UsageError
from sempa_mlx.export.peft import export_peft
from sempa_mlx.export.peft_import import import_peft
from sempa_mlx.model.adapter_config import CONFIG_FILE, WEIGHTS_FILE
from sempa_mlx.model.load import load_model
from sempa_mlx.model.lora import adapter_weights, attach, dialled, load_adapter, save_adapter
from tests.command import done, refused
from tests.tiny import move_adapter, write_tiny_folder

KINDS = ("lora", "rslora", "dora")
# transformers ties weights only if told so, where mlx-lm does by default; Gemma's is whole there.
FOR_TRANSFORMERS = {
    **{name: {"tie_word_embeddings": True} for name in ("llama", "qwen2", "qwen3")},
    "gemma2": {"tie_word_embeddings": True, "query_pre_attn_scalar": 8},
}
ROW = [5, 17, 3, 99, 42, 8, 64]


def write_run(folder, kind="lora", family="llama", scale=1.0, **settings):
    """A base and an adapter that changes much; returns the model with it."""
    if not (folder / "base").exists():
        write_tiny_folder(folder / "base", family, **FOR_TRANSFORMERS[family])
    loaded = load_model(str(folder / "base"), dtype="float32")
    lora = LoraConfig(kind=kind, rank=4, alpha=8.0, **settings)
    attach(loaded.model, lora, seed=3)
    move_adapter(loaded.model, 0.3)
    save_adapter(folder / "run", adapter_weights(loaded.model), lora, loaded)
    Encoder(loaded, EncoderSettings(adapter_scale=scale)).save_settings(folder / "run")
    return loaded


def ours(loaded, dial=1.0):
    with dialled(loaded.model, dial):
        return np.array(loaded.model(mx.array([ROW])))[0]


def theirs(base, adapter):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.inference_mode():
        return model(torch.tensor([ROW])).logits[0].numpy(), model


@pytest.mark.interop
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("kind", "family", "settings"),
    [
        ("lora", "llama", {}),
        ("rslora", "llama", {}),
        ("dora", "llama", {}),
        ("lora", "qwen2", {}),
        ("lora", "qwen3", {}),
        ("lora", "gemma2", {}),
        ("lora", "llama", {"layers": 2}),
        ("dora", "llama", {"layers": 1, "keys": ("self_attn.q_proj", "mlp.up_proj")}),
    ],
)
def test_peft_computes_what_we_compute(tmp_path, kind, family, settings):
    loaded = write_run(tmp_path, kind, family, **settings)
    export_peft(tmp_path / "run", tmp_path / "peft")
    found, model = theirs(tmp_path / "base", tmp_path / "peft")
    expected = ours(loaded)
    assert np.abs(expected - ours(loaded, 0)).max() > 0.05
    np.testing.assert_allclose(found, expected, atol=1e-3)
    trained = {name for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(trained) == sum(name.endswith("lora_a") for name in adapter_weights(loaded.model))


@pytest.mark.interop
@pytest.mark.filterwarnings("default")
def test_the_dial_goes_into_alpha(tmp_path):
    loaded = write_run(tmp_path, scale=0.5)
    export_peft(tmp_path / "run", tmp_path / "peft")
    found, _ = theirs(tmp_path / "base", tmp_path / "peft")
    np.testing.assert_allclose(found, ours(loaded, 0.5), atol=1e-3)


@pytest.mark.interop
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_trained_computes_the_same_here(tmp_path, kind):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    write_tiny_folder(tmp_path / "base", **FOR_TRANSFORMERS["llama"])
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    settings = peft.LoraConfig(
        r=8,
        lora_alpha=32,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        use_dora=kind == "dora",
        use_rslora=kind == "rslora",
    )
    model = peft.get_peft_model(base, settings).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.05)
            elif "magnitude" in name:
                tensor.mul_(1.2)
        expected = model(torch.tensor([ROW])).logits[0].numpy()
    model.save_pretrained(tmp_path / "peft")
    found = import_peft(tmp_path / "peft", tmp_path / "run", model=str(tmp_path / "base"))
    assert (found.kind, found.rank, found.num_layers) == (kind, 8, 21)
    loaded = load_model(str(tmp_path / "base"), dtype="float32")
    load_adapter(loaded, tmp_path / "run")
    np.testing.assert_allclose(ours(loaded), expected, atol=1e-3)
    assert Encoder.load(tmp_path / "run").encode(["A cat sleeps."]).shape == (1, 32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [-1, 1, 2])
def test_there_and_back_is_bit_for_bit(tmp_path, kind, layers):
    write_run(tmp_path, kind, layers=layers)
    export_peft(tmp_path / "run", tmp_path / "peft")
    import_peft(tmp_path / "peft", tmp_path / "again", model=str(tmp_path / "base"))
    before, after = (mx.load(str(tmp_path / name / WEIGHTS_FILE)) for name in ("run", "again"))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]).item() for name in before)
    configs = [json.loads((tmp_path / n / CONFIG_FILE).read_text()) for n in ("run", "again")]
    first, second = (
        {**config["lora_parameters"], "type": config["fine_tune_type"], "n": config["num_layers"]}
        for config in configs
    )
    assert first == second


def test_settings_are_pefts(tmp_path):
    write_run(tmp_path, "rslora", layers=2)
    found = export_peft(tmp_path / "run", tmp_path / "peft", base="org/model")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == found.base == "org/model"
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 8, True)
    assert config["layers_to_transform"] == [1, 2]
    assert config["target_modules"] == [
        *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"),
    ]


def peft_folder(tmp_path, **changes):
    write_run(tmp_path)
    export_peft(tmp_path / "run", tmp_path / "peft")
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return tmp_path / "peft"


def test_all_that_cannot_be_carried_over_is_named_at_once(tmp_path):
    folder = peft_folder(
        tmp_path, modules_to_save=["lm_head"], bias="all", rank_pattern={}, alpha_pattern={"q": 1}
    )
    weights = mx.load(str(folder / "adapter_model.safetensors"))
    weights["base_model.model.model.embed_tokens.lora_embedding_A"] = mx.zeros((4, 8))
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), weights)
    with pytest.raises(ModelError) as caught:
        import_peft(folder, tmp_path / "out", model=str(tmp_path / "base"))
    told = "\n".join(problem.what for problem in caught.value.problems)
    for name in ("modules_to_save", "bias: all", "alpha_pattern", "lora_embedding_A"):
        assert name in told
    assert len(caught.value.problems) == 4
    assert not (tmp_path / "out").exists()


def test_unlike_ranks_and_gaps_are_refused(tmp_path):
    folder = peft_folder(tmp_path)
    path = str(folder / "adapter_model.safetensors")
    weights = dict(mx.load(path))
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    kept = {key: value for key, value in weights.items() if not key.startswith(name)}
    mx.save_safetensors(path, kept)
    with pytest.raises(ModelError, match=r"block 1: nothing on self_attn\.q_proj"):
        import_peft(folder, tmp_path / "out", model=str(tmp_path / "base"))
    weights[f"{name}A.weight"] = mx.zeros((2, 32))
    mx.save_safetensors(path, weights)
    with pytest.raises(ModelError, match=r"ranks differ between layers \(\[2, 4\]\)"):
        import_peft(folder, tmp_path / "out", model=str(tmp_path / "base"))


def test_a_base_of_another_size_is_refused_with_every_shape(tmp_path):
    folder = peft_folder(tmp_path)
    write_tiny_folder(tmp_path / "wide", hidden_size=64, intermediate_size=96, head_dim=16)
    with pytest.raises(ModelError, match="the base needs") as caught:
        import_peft(folder, tmp_path / "out", model=str(tmp_path / "wide"))
    assert len(caught.value.problems) == 3 * 7 * 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 7, 100, 3000])
def test_a_truncated_file_is_refused(tmp_path, size):
    folder = peft_folder(tmp_path)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match="unreadable"):
        import_peft(folder, tmp_path / "out", model=str(tmp_path / "base"))


def test_pickles_are_not_loaded(tmp_path):
    folder = peft_folder(tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    error = refused(1, "import-peft", folder, "--adapter-path", tmp_path / "out").err
    assert "pickle" in error
    assert "safe_serialization=True" in error


def test_dora_has_no_dial_in_peft(tmp_path):
    write_run(tmp_path, "dora", scale=0.5)
    with pytest.raises(UsageError, match="no dial"):
        export_peft(tmp_path / "run", tmp_path / "peft")
    export_peft(tmp_path / "run", tmp_path / "peft", scale=1.0)


def test_nothing_is_overwritten(tmp_path):
    write_run(tmp_path)
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="choose a new folder"):
        export_peft(tmp_path / "run", tmp_path / "peft")
    assert [path.name for path in (tmp_path / "peft").iterdir()] == ["notes.txt"]


def test_the_commands_go_there_and_back(tmp_path):
    write_run(tmp_path)
    run, out = ["--adapter-path", tmp_path / "run"], ["--out", tmp_path / "peft"]
    assert "PeftModel.from_pretrained" in done("export", "--to", "peft", *run, *out).err
    told = done("import-peft", tmp_path / "peft", "--adapter-path", tmp_path / "again")
    assert "lora of rank 4, scale 2, on 21 layers" in told.err
    shutil.rmtree(tmp_path / "peft")
    error = refused(2, "export", "--to", "peft", *run, *out, "--q-bits", 4, "--private").err
    assert "--q-bits goes with --to fused" in error
    assert "--private goes with --push" in error
