"""`import-peft`: adapters of PEFT, taken over or refused with every fault at once."""

import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.errors import ModelError
from sempa_mlx.export.import_peft import import_peft
from sempa_mlx.export.peft import CONFIG_FILE, WEIGHTS_FILE, export_peft
from sempa_mlx.model.lora import read_adapter_config
from tests.adapters import edit_json, logits_of, write_run
from tests.command import done, files_below, refused
from tests.tiny import write_tiny_folder


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A base, adapters on it, and the same adapters as PEFT writes them."""
    folder = tmp_path_factory.mktemp("space")
    write_tiny_folder(folder / "base")
    write_tiny_folder(folder / "wider", hidden_size=64)
    for kind in ("lora", "rslora", "dora"):
        run = write_run(folder / f"{kind}-run", folder / "base", kind=kind, scale=1.0)
        export_peft(run, folder / kind)
    return folder


@pytest.fixture
def here(space, tmp_path, monkeypatch):
    """A folder to work in, with an adapter of PEFT to change."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(space / "lora", "peft")
    return tmp_path


def edit(**changes):
    edit_json(Path("peft", CONFIG_FILE), **changes)


def edit_tensors(change):
    """Put `change` of name and tensor in the place of every tensor; None drops it."""
    path = Path("peft", WEIGHTS_FILE)
    stored = mx.load(str(path))
    mx.eval(stored)  # the file is about to be overwritten
    pairs = [change(name, value) for name, value in stored.items()]
    mx.save_safetensors(str(path), dict(pair for pair in pairs if pair))


def import_it(*more):
    return ("import-peft", "peft", "--adapter-path", "run", *more)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_an_adapter_comes_back_bit_for_bit_and_embeds(space, here, kind):
    found = import_peft(space / kind, here / "run")
    assert (found.settings.kind, found.num_layers) == (kind, 21)
    first, back = space / f"{kind}-run", here / "run"
    assert read_adapter_config(back) == read_adapter_config(first)
    one, other = (mx.load(str(run / "adapters.safetensors")) for run in (first, back))
    assert one.keys() == other.keys()
    assert all(mx.array_equal(one[name], other[name]).item() for name in one)
    texts = ["A cat sleeps.", "Two dogs run."]
    np.testing.assert_array_equal(
        Encoder.load(back).encode(texts), Encoder.load(first).encode(texts)
    )
    assert Encoder.load(back).settings.method == "prompteol"


def test_the_command_says_what_it_took(space, here):
    outcome = done(*import_it(), "--json")
    assert outcome.document == {
        **{"adapter_path": "run", "model": str(space / "base"), "kind": "lora"},
        **{"rank": 4, "scale": 2.5, "layers": 21},
    }
    outcome = done("import-peft", "peft", "--adapter-path", "again")
    assert outcome.out == "again\n"
    assert "sempa-mlx embed FILE --adapter-path again" in outcome.err


def test_another_place_of_the_base_is_said(space, here):
    edit(base_model_name_or_path="owner/model")
    outcome = done(*import_it("--model", space / "base"))
    assert "names `owner/model` as its base" in outcome.err


def test_patterns_that_come_to_the_same_for_all_layers_are_taken(space, here):
    edit(r=64, rank_pattern={"q_proj|k_proj|v_proj|o_proj": 4, "mlp.(up|gate|down)_proj": 4})
    edit(alpha_pattern={"model.layers.\\d.mlp.up_proj": 10})
    found = import_peft(here / "peft", here / "run")
    assert (found.settings.rank, found.settings.scale) == (4, 2.5)
    assert np.array_equal(
        logits_of(space / "base", "run"), logits_of(space / "base", space / "lora-run")
    )


def test_names_with_the_adapters_name_in_them_are_taken(space, here):
    edit_tensors(lambda name, value: (name.replace(".weight", ".default.weight"), value))
    import_peft(here / "peft", here / "run")
    assert np.array_equal(
        logits_of(space / "base", "run"), logits_of(space / "base", space / "lora-run")
    )


def test_dora_keeps_the_scale_of_rslora(space, here):
    shutil.rmtree("peft")
    shutil.copytree(space / "dora", "peft")
    edit(use_rslora=True)
    settings = import_peft(here / "peft", here / "run").settings
    assert settings.kind == "dora"
    assert settings.scale == pytest.approx(10 / math.sqrt(4))


def test_half_precision_is_taken_as_it_is(space, here):
    edit_tensors(lambda name, value: (name, value.astype(mx.bfloat16)))
    import_peft(here / "peft", here / "run")
    weights = mx.load("run/adapters.safetensors")
    assert {str(each.dtype) for each in weights.values()} == {"mlx.core.bfloat16"}
    assert np.isfinite(logits_of(space / "base", "run")).all()


def test_all_that_cannot_be_carried_over_is_named_at_once(here):
    edit(
        modules_to_save=["lm_head"],
        bias="lora_only",
        rank_pattern={"q_proj": 8},
        alpha_pattern={"down_proj": 20},
        init_lora_weights="pissa_niter_4",
        fan_in_fan_out=True,
        use_quantum=True,
    )
    head = "base_model.model.lm_head.lora_A.weight"
    embedding = "base_model.model.model.embed_tokens.lora_embedding_A"
    weights = mx.load(str(here / "peft" / WEIGHTS_FILE))
    mx.eval(weights)
    extra = {head: mx.zeros((4, 32)), embedding: mx.zeros((4, 340)), "classifier": mx.zeros((2,))}
    mx.save_safetensors(str(here / "peft" / WEIGHTS_FILE), weights | extra)
    before = files_below(here)
    outcome = refused(1, *import_it())
    for word in (
        *("modules_to_save: whole layers", "bias 'lora_only'", "fan_in_fan_out", "use_quantum"),
        *("pissa_niter_4", "the rank differs between layers (4 in 18, 8 in 3)"),
        *("the scale differs between layers", head, embedding, "classifier: no tensor"),
    ):
        assert any(word in line for line in outcome.errors), word
    assert len(outcome.errors) == 10
    assert files_below(here) == before


@pytest.mark.parametrize(
    "key",
    [
        *("trainable_token_indices", "target_parameters", "layer_replication", "lora_bias"),
        *("use_qalora", "alora_invocation_tokens", "use_bdlora", "arrow_config"),
    ],
)
def test_relatives_of_lora_are_refused(here, key):
    edit(**{key: [1]})
    with pytest.raises(ModelError, match=f"{key}: ") as caught:
        import_peft(here / "peft", here / "run")
    assert len(caught.value.problems) == 1
    assert not Path("run").exists()


@pytest.mark.parametrize("kind", ["IA3", "ADALORA", "PROMPT_TUNING"])
def test_other_types_are_refused(here, kind):
    edit(peft_type=kind)
    assert f"type {kind} are not supported" in refused(1, *import_it()).errors[0]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"r": 0}, "above 0"),
        ({"r": None}, "TypeError"),
        ({"lora_alpha": "much"}, "TypeError"),
        ({"rank_pattern": {"(": 4}}, "not a config of PEFT"),
        ({"lora_dropout": 2}, "dropout: "),
        ({"peft_type": None}, "type None"),
        ({"r": 4.5}, "r is no whole number"),
        ({"lora_alpha": True}, "lora_alpha is no number"),
        ({"lora_alpha": math.nan}, "lora_alpha is no number"),
        ({"base_model_name_or_path": 5, "revision": 6}, "path is no text; revision is no text"),
    ],
)
def test_a_broken_config_is_refused(here, changes, what):
    edit(**changes)
    assert what in refused(1, *import_it()).errors[0]
    assert not Path("run").exists()


def test_a_config_that_is_no_json_is_refused(here):
    Path("peft", CONFIG_FILE).write_text("{")
    assert "not a config of PEFT" in refused(1, *import_it()).errors[0]


def test_pickled_weights_are_not_read(here):
    Path("peft", WEIGHTS_FILE).rename("peft/adapter_model.bin")
    outcome = refused(1, *import_it())
    assert "can run code" in outcome.errors[0]
    assert "safe_serialization=True" in outcome.err


def test_a_folder_without_an_adapter_is_refused(space, here):
    outcome = refused(1, "import-peft", space / "base", "--adapter-path", "run")
    assert "missing adapter_config.json, adapter_model.safetensors" in outcome.errors[0]
    outcome = refused(1, "import-peft", space / "lora-run", "--adapter-path", "run")
    assert "missing adapter_model.safetensors" in outcome.errors[0]


def test_a_truncated_file_is_refused(here):
    content = Path("peft", WEIGHTS_FILE).read_bytes()
    Path("peft", WEIGHTS_FILE).write_bytes(content[: len(content) // 2])
    assert "unreadable" in refused(1, *import_it()).errors[0]
    Path("peft", WEIGHTS_FILE).unlink()
    mx.save_safetensors(str(here / "peft" / WEIGHTS_FILE), {})
    assert "holds no tensors" in refused(1, *import_it()).errors[0]


def test_another_base_is_refused_layer_by_layer(space, here):
    outcome = refused(1, *import_it("--model", space / "wider"))
    assert "shape (32, 4), the model and the rank need (64, 4)" in outcome.err
    assert len(outcome.errors) > 20
    assert "nothing was written" in outcome.err
    assert not Path("run").exists()


def test_layers_and_tensors_that_do_not_belong_are_all_named(here):
    def change(name, value):
        name = name.replace("layers.2.self_attn.q_proj", "layers.7.self_attn.q_proj")
        if "layers.0.mlp.up_proj.lora_B" in name:
            return None
        if "layers.1.mlp.up_proj.lora_B" in name:
            name = name.replace("lora_B.weight", "lora_magnitude_vector")
        return name, value

    edit_tensors(change)
    errors = refused(1, *import_it()).errors
    for word in (
        "layers.7.self_attn.q_proj: no linear layer",
        "layers.0.mlp.up_proj.lora_b: missing",
        "layers.1.mlp.up_proj.lora_b: missing",
        "layers.1.mlp.up_proj.m: the config says nothing of it",
    ):
        assert any(word in line for line in errors), word
    assert len(errors) == 4


def test_a_base_that_is_not_there_can_be_named(space, here):
    edit(base_model_name_or_path="/far/away")
    outcome = refused(1, *import_it())
    assert "no model `/far/away`" in outcome.errors[0]
    assert "--model says where it is" in outcome.err
    edit(base_model_name_or_path=None)
    assert "names no base" in refused(1, *import_it()).errors[0]
    done(*import_it("--model", space / "base"))


def test_layers_that_transformers_names_otherwise_are_refused(here):
    write_tiny_folder(here / "lfm2", "lfm2")
    assert "models of type `lfm2`" in refused(1, *import_it("--model", "lfm2")).errors[0]


def test_a_folder_that_holds_something_is_left_alone(here):
    Path("run").mkdir()
    Path("run/file").write_text("precious")
    refused(2, *import_it())
    assert [path.name for path in Path("run").iterdir()] == ["file"]
    Path("file").write_text("precious")
    outcome = refused(4, "import-peft", "peft", "--adapter-path", "file/run")
    assert "cannot write file/run" in outcome.errors[0]
    assert json.loads(Path("peft", CONFIG_FILE).read_text())["r"] == 4
