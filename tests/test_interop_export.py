"""PEFT and transformers read what we export, and we read what PEFT saves: logits are compared."""

import json

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.export.adapted import SHARED_TYPES
from sempa_mlx.export.fuse import FusePlan, export_fused
from sempa_mlx.export.import_peft import import_peft
from sempa_mlx.export.mlx import write_gguf_base
from sempa_mlx.export.peft import export_peft
from sempa_mlx.model.lora import CONFIG_FILE, WEIGHTS_FILE, read_adapter_config
from tests.adapters import IDS, edit_json, logits_of, write_run
from tests.tiny import write_tiny_folder

pytestmark = [
    pytest.mark.interop,
    pytest.mark.unmeasured,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

COMMON = {
    **{"num_hidden_layers": 3, "max_position_embeddings": 512, "rope_theta": 1e4},
    **{"tie_word_embeddings": True, "pad_token_id": 0},
}
EXACT_GELU = "gelu_python"  # which mlx-lm has there, where the models' own configs name another
KINDS_OF_MODEL = {  # what a tiny model of the type needs beside the common sizes
    "cohere": {"layer_norm_eps": 1e-5},
    "gemma": {"head_dim": 8, "hidden_act": EXACT_GELU},
    "gemma2": {
        **{"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4096},
        **{"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    },
    # mlx-lm rounds the root of the width to bfloat16; that of 64 needs no rounding.
    "gemma3_text": {"tie_word_embeddings": False, "hidden_size": 64},
    "granite": {
        **{"attention_multiplier": 0.3, "embedding_multiplier": 1.5, "residual_multiplier": 0.7},
        **{"logits_scaling": 2.0, "attention_bias": False, "mlp_bias": False},
    },
    "llama": {"head_dim": 8},
    "mistral": {"head_dim": 8},
    "olmo2": {},
    "phi": {
        **{"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "num_key_value_heads": 4},
        "tie_word_embeddings": False,
    },
    "phi3": {"original_max_position_embeddings": 512},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "smollm3": {},
    "stablelm": {
        **{"layer_norm_eps": 1e-5, "use_qkv_bias": False, "partial_rotary_factor": 0.25},
        "tie_word_embeddings": False,
    },
    "starcoder2": {
        **{"norm_epsilon": 1e-5, "use_sliding_window": False, "hidden_act": EXACT_GELU},
    },
}


def write_base(folder, kind="llama"):
    """Write a tiny model of a type that transformers opens too."""
    written = "llama" if kind == "mistral" else kind  # mlx-lm runs it as such
    write_tiny_folder(folder, written, **(COMMON | KINDS_OF_MODEL[kind]))
    edit_json(folder / "config.json", model_type=kind, bos_token_id=0, eos_token_id=1)
    return folder


def opened(folder):
    """The model as transformers opens it; every weight has to have its place."""
    import torch
    import transformers

    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def with_peft(base, adapter):
    """The base with an adapter of PEFT, as PEFT opens it."""
    import peft

    return peft.PeftModel.from_pretrained(opened(base), adapter).eval()


def their_logits(model):
    import torch

    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("interop") / "base")


def bit_equal(first, second):
    one, other = mx.load(str(first / WEIGHTS_FILE)), mx.load(str(second / WEIGHTS_FILE))
    assert one.keys() == other.keys()
    return all(mx.array_equal(one[name], other[name]).item() for name in one)


PARTS = [
    {},
    {"layers": 1},
    {"layers": 2, "keys": ("self_attn.q_proj", "mlp.up_proj")},
]


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("part", PARTS, ids=["all", "last", "some"])
def test_peft_says_what_we_say_and_comes_back_as_it_was(tmp_path, base, kind, part):
    run = write_run(tmp_path / "run", base, kind=kind, **part)
    export_peft(run, tmp_path / "peft")
    model = with_peft(base, tmp_path / "peft")
    assert model.peft_config["default"].use_rslora is (kind == "rslora")
    ours = logits_of(base, run)
    np.testing.assert_allclose(their_logits(model), ours, atol=1e-4)
    assert np.abs(ours - logits_of(base)).max() > 0.1
    import_peft(tmp_path / "peft", tmp_path / "back")
    assert bit_equal(run, tmp_path / "back")
    assert read_adapter_config(run) == read_adapter_config(tmp_path / "back")


def test_scattered_layers_are_named_one_by_one(tmp_path, base):
    run = write_run(tmp_path / "run", base)
    kept = ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj")
    weights = mx.load(str(run / WEIGHTS_FILE))
    weights = {name: each for name, each in weights.items() if name.startswith(kept)}
    mx.eval(weights)  # the file is about to be overwritten
    mx.save_safetensors(str(run / WEIGHTS_FILE), weights)
    parameters = read_adapter_config(run)["lora_parameters"] | {"keys": list(kept)}
    edit_json(run / CONFIG_FILE, lora_parameters=parameters)
    export_peft(run, tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["target_modules"] == list(kept)
    model = with_peft(base, tmp_path / "peft")
    np.testing.assert_allclose(their_logits(model), logits_of(base, run), atol=1e-4)
    import_peft(tmp_path / "peft", tmp_path / "back")
    assert bit_equal(run, tmp_path / "back")
    assert read_adapter_config(tmp_path / "back")["lora_parameters"]["keys"] == list(kept)


@pytest.mark.parametrize(("asked", "at"), [(None, 0.5), (0.25, 0.25)])
def test_the_dial_is_in_the_scale(tmp_path, base, asked, at):
    run = write_run(tmp_path / "run", base, kind="rslora", scale=0.5)
    assert export_peft(run, tmp_path / "peft", scale=asked).scale == at
    model = with_peft(base, tmp_path / "peft")
    np.testing.assert_allclose(their_logits(model), logits_of(base, run, scale=at), atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_that_peft_made_is_imported(tmp_path, base, kind):
    """In the form of SemPA's releases: rank 8, alpha 32, every linear layer."""
    import peft
    import torch

    settings = peft.LoraConfig(
        **{"r": 8, "lora_alpha": 32, "target_modules": "all-linear", "lora_dropout": 0.05},
        use_dora=kind == "dora",
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(opened(base), settings)
    for name, weight in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            weight.data += 0.2 * torch.randn_like(weight)
    model.eval().save_pretrained(tmp_path / "peft")
    found = import_peft(tmp_path / "peft", tmp_path / "run", model=str(base))
    assert (found.settings.rank, found.settings.scale, found.num_layers) == (8, 4.0, 21)
    np.testing.assert_allclose(logits_of(base, tmp_path / "run"), their_logits(model), atol=1e-4)
    assert Encoder.load(tmp_path / "run").settings.method == "prompteol"
    export_peft(tmp_path / "run", tmp_path / "again")
    first, again = (
        mx.load(str(tmp_path / name / "adapter_model.safetensors")) for name in ("peft", "again")
    )
    assert first.keys() == again.keys()
    assert all(mx.array_equal(first[name], again[name]).item() for name in first)


def test_every_shared_type_is_compared():
    assert KINDS_OF_MODEL.keys() == SHARED_TYPES


@pytest.mark.parametrize("kind", sorted(SHARED_TYPES))
def test_a_fused_model_is_base_and_adapter_in_transformers(tmp_path, kind):
    base = write_base(tmp_path / "base", kind)
    run = write_run(tmp_path / "run", base)
    export_fused(run, tmp_path / "fused", FusePlan())
    ours = logits_of(base, run)
    np.testing.assert_allclose(their_logits(opened(tmp_path / "fused")), ours, atol=1e-4)
    np.testing.assert_allclose(logits_of(tmp_path / "fused"), ours, atol=1e-4)
    assert np.abs(ours - logits_of(base)).max() > 0.1
    export_peft(run, tmp_path / "peft")
    model = with_peft(base, tmp_path / "peft")
    np.testing.assert_allclose(their_logits(model), ours, atol=1e-4)


@pytest.mark.parametrize(("kind", "scale"), [("lora", 0.5), ("dora", 1.0), ("dora", 0.5)])
def test_the_dial_is_in_the_fused_weights(tmp_path, base, kind, scale):
    run = write_run(tmp_path / "run", base, kind=kind)
    export_fused(run, tmp_path / "fused", FusePlan(), scale=scale)
    ours = logits_of(base, run, scale=scale)
    np.testing.assert_allclose(their_logits(opened(tmp_path / "fused")), ours, atol=1e-4)


def test_a_gguf_base_is_exported_too(tmp_path):
    tiny_gguf = pytest.importorskip("tests.tiny_gguf")
    file = tmp_path / "tiny.gguf"
    tiny_gguf.write_gguf(file, tiny_gguf.all_metadata(), tiny_gguf.random_tensors(), "Q4_1")
    run = write_run(tmp_path / "run", file)
    ours = logits_of(file, run)
    export_fused(run, tmp_path / "fused", FusePlan())
    np.testing.assert_allclose(their_logits(opened(tmp_path / "fused")), ours, atol=1e-4)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "fused")
    assert tokenizer("A cat").input_ids == Encoder.load(run).loaded.tokenizer.encode("A cat")
    base = write_gguf_base(file, tmp_path / "base")
    assert export_peft(run, tmp_path / "peft", base="owner/tiny").base == "owner/tiny"
    model = with_peft(base, tmp_path / "peft")
    np.testing.assert_allclose(their_logits(model), ours, atol=1e-4)
