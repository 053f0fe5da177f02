"""`export` to mlx-lm, PEFT, fused models and encoder folders, and every refusal of theirs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model as load_mlx_model
from mlx_lm.utils import quantize_model, save_model

from sempa_mlx.encoder.coder_file import CODER_FILE, write_coder
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.postprocess import fit_post
from sempa_mlx.errors import ModelError, UsageError
from sempa_mlx.export.encoder_folder import export_encoder
from sempa_mlx.export.fuse import FusePlan, export_fused
from sempa_mlx.export.logit_check import NUM_TEXTS, compare, expected_logits, packaged_texts
from sempa_mlx.export.peft import export_peft
from sempa_mlx.model.load import load_model
from sempa_mlx.model.lora import CONFIG_FILE, WEIGHTS_FILE, load_adapter, read_adapter_config
from tests.adapters import edit_json, logits_of, write_run
from tests.command import SENTENCES, done, files_below, refused
from tests.encoder.codes import drawn_coder
from tests.tiny import write_tiny_folder

FORMS = ("mlx", "peft", "fused", "encoder")


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """Bases and an adapter on one of them; tests write elsewhere."""
    folder = tmp_path_factory.mktemp("space")
    write_tiny_folder(folder / "base")
    write_tiny_folder(folder / "other", seed=5)
    write_tiny_folder(folder / "wider", hidden_size=64)
    write_run(folder / "run", folder / "base")
    (folder / "notes.txt").write_text("".join(f"{text}\n" for text in SENTENCES))
    return folder


def export(form, run, *more):
    return ("export", "--to", form, "--adapter-path", run, "--out", "out", *more)


# PEFT


def test_the_peft_config_says_all_in_keys_that_peft_has_long_had(space, here):
    outcome = done(*export("peft", space / "run"), "--json")
    assert outcome.document == {"path": "out", "base": str(space / "base"), "adapter_scale": 1.0}
    names = ["adapter_config.json", "adapter_model.safetensors"]
    assert sorted(files_below(here / "out")) == names
    assert json.loads(Path("out/adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(space / "base"),
        "inference_mode": True,
        "r": 4,
        "lora_alpha": 10,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "target_modules": [
            *("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
        ],
    }
    ours, theirs = mx.load(str(space / "run" / WEIGHTS_FILE)), mx.load("out/" + names[1])
    layer = "model.layers.1.self_attn.q_proj"
    assert len(ours) == len(theirs)
    for part, name in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
        theirs_now = theirs[f"base_model.model.{layer}.{name}.weight"]
        assert mx.array_equal(ours[f"{layer}.{part}"].T, theirs_now).item()


def test_an_adapter_of_mlx_lm_is_exported_by_its_scale(space, here):
    shutil.copytree(space / "run", "run")
    config = read_adapter_config(here / "run")
    del config["sempa"]
    config["lora_parameters"]["scale"] = 20.0
    Path("run", CONFIG_FILE).write_text(json.dumps(config))
    export_peft(Path("run"), Path("out"))
    written = json.loads(Path("out/adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (4, 80)


def test_dora_cannot_be_dialled_for_peft(space, here):
    write_run(here / "run", space / "base", kind="dora", scale=0.5)
    outcome = refused(2, *export("peft", "run"))
    assert "DoRA at scale 0.5" in outcome.errors[0]
    assert "--to fused" in outcome.err
    done(*export("peft", "run", "--adapter-scale", 1))
    assert json.loads(Path("out/adapter_config.json").read_text())["use_dora"] is True


def test_a_base_that_transformers_cannot_open_needs_a_name(space, here):
    packed = quantised(space / "base", here / "packed")
    write_run(here / "run", packed)
    outcome = refused(2, *export("peft", "run"))
    assert "mlx-lm quantised it" in outcome.errors[0]
    assert "--base owner/model" in outcome.err
    assert not Path("out").exists()
    done(*export("peft", "run", "--base", "owner/model"))
    config = json.loads(Path("out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/model"


def test_layers_that_transformers_names_otherwise_are_refused(here):
    write_tiny_folder(here / "base", "lfm2")
    write_run(here / "run", here / "base")
    outcome = refused(1, *export("peft", "run"))
    assert "models of type `lfm2`" in outcome.errors[0]
    assert not Path("out").exists()


def quantised(base, folder, bits=4):
    """Write a base with packed weights, as `mlx_lm convert -q` does."""
    model, config = load_mlx_model(base)
    model, config = quantize_model(model, config, 32, bits)
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config))
    for file in base.glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    return folder


# fused


def test_a_fused_model_is_base_and_adapter(space, here):
    outcome = done(*export("fused", space / "run"))
    assert outcome.out == "out\n"
    assert "Verified on packaged sentences" in outcome.err
    expected = logits_of(space / "base", space / "run")
    np.testing.assert_allclose(logits_of("out"), expected, atol=1e-4)
    assert np.abs(expected - logits_of(space / "base")).max() > 0.1
    original = {file.name for file in (space / "base").iterdir()}
    assert {file.name for file in Path("out").iterdir()} == original | {
        "model.safetensors.index.json"
    }
    for name in original - {"config.json", "model.safetensors"}:
        assert Path("out", name).read_bytes() == (space / "base" / name).read_bytes()


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_at_scale_nothing_the_weights_are_those_of_the_base(space, here, kind):
    run = write_run(here / "run", space / "base", kind=kind)
    found = export_fused(run, here / "out", FusePlan(), scale=0.0)
    assert (found.scale, found.check.effect) == (0.0, 0.0)
    base, fused = (mx.load(str(f / "model.safetensors")) for f in (space / "base", here / "out"))
    assert base.keys() == fused.keys()
    assert all(mx.array_equal(base[name], fused[name]).item() for name in base)


def test_the_folders_own_dial_is_fused_unless_another_is_asked_for(space, here):
    run = write_run(here / "run", space / "base", scale=0.5)
    for number, (asked, used) in enumerate(((None, 0.5), (0.25, 0.25))):
        out = here / f"out{number}"
        assert export_fused(run, out, FusePlan(), scale=asked).scale == used
        expected = logits_of(space / "base", run, scale=used)
        np.testing.assert_allclose(logits_of(out), expected, atol=1e-4)


def test_a_quantised_base_comes_out_unpacked(space, here):
    packed = quantised(space / "base", here / "packed")
    run = write_run(here / "run", packed)
    expected = logits_of(packed, run)
    export_fused(run, here / "out", FusePlan())
    assert not [name for name in json.loads(Path("out/config.json").read_text()) if "quant" in name]
    np.testing.assert_allclose(logits_of("out"), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_precision_of_the_base_is_kept_and_another_can_be_had(space, here, dtype):
    shutil.copytree(space / "base", "half")
    weights = mx.load(str(space / "base" / "model.safetensors"))
    to = {"float16": mx.float16, "bfloat16": mx.bfloat16}[dtype]
    halved = {name: each.astype(to) for name, each in weights.items()}
    mx.save_safetensors("half/model.safetensors", halved)
    run = write_run(here / "run", here / "half")
    found = export_fused(run, here / "out", FusePlan())
    assert (found.dtype, found.bound) == (dtype, 0.1)
    assert {str(each.dtype) for each in mx.load("out/model.safetensors").values()} == {
        f"mlx.core.{dtype}"
    }
    assert json.loads(Path("out/config.json").read_text())["torch_dtype"] == dtype
    full = export_fused(run, here / "full", FusePlan(dtype="float32"))
    assert (full.dtype, full.bound) == ("float32", 0.001)
    assert full.check.error < found.check.error


def test_quantised_weights_that_lose_the_adapter_are_refused_with_numbers(space, here):
    run = write_run(here / "run", space / "base", size=0.01)
    quantise = ("--q-bits", 4, "--q-group-size", 32)
    outcome = refused(1, *export("fused", run, *quantise))
    assert "off by more than 50% of what the adapter changes" in outcome.errors[0]
    assert "root mean square over" in outcome.err
    assert "--max-error" in outcome.err
    assert sorted(path.name for path in here.iterdir()) == ["run"]
    outcome = done(*export("fused", run, *quantise, "--max-error", 1e6), "--json")
    verified = outcome.document["verified"]
    assert verified["share"] > 0.5
    assert verified["bound"] == 1e6
    model, config = load_mlx_model(Path("out"))
    assert config["quantization"]["bits"] == 4
    assert "scales" in model.model.layers[0].self_attn.q_proj
    found = np.array(model(mx.array([[1, 5, 9]]))[0])
    assert np.abs(found - logits_of("out", ids=(1, 5, 9))).max() < 1e-2


def test_eight_bits_keep_an_adapter_that_changes_much(space, here):
    found = export_fused(space / "run", here / "out", FusePlan(bits=8, group_size=32))
    assert 0.001 < found.check.share < found.bound == 0.5


def test_the_bound_is_on_what_was_written(space, here, monkeypatch):
    """A damaged file is found, though the weights in memory were right."""
    from sempa_mlx.export import fuse

    def damaged(folder, model):
        save_model(folder, model)
        weights = mx.load(str(folder / "model.safetensors"))
        weights["model.norm.weight"] = weights["model.norm.weight"] * 1.01
        mx.save_safetensors(str(folder / "model.safetensors"), weights)

    monkeypatch.setattr(fuse, "save_model", damaged)
    with pytest.raises(ModelError, match=r"off by more than 0\.1% of what"):
        export_fused(space / "run", here / "out", FusePlan())
    assert files_below(here) == {}


def test_impossible_ways_to_store_are_refused_together(space, here):
    options = ("--dtype", "int8", "--q-bits", 7, "--q-group-size", 48, "--max-error", 0)
    outcome = refused(2, *export("fused", space / "run", *options))
    assert [line.split(": ")[1] for line in outcome.errors] == [
        *("--dtype", "--q-bits", "--q-group-size", "--max-error")
    ]
    with pytest.raises(UsageError, match="not above 0"):
        export_fused(space / "run", here / "out", FusePlan(max_error=float("nan")))


def test_the_error_is_a_share_of_what_the_adapter_changes(space):
    texts = packaged_texts()
    assert len(texts) == len(set(texts)) == NUM_TEXTS
    loaded = load_model(str(space / "base"))
    load_adapter(loaded, space / "run")
    expected = expected_logits(loaded, 1.0, texts)
    base = compare(load_model(str(space / "base")), expected)
    assert base.share == pytest.approx(1.0)
    assert base.error == pytest.approx(expected.effect)
    same = compare(loaded, expected)
    assert (same.error, same.largest, same.share) == (0.0, 0.0, 0.0)
    loaded.model.update({"model": {"norm": {"weight": mx.full((32,), float("nan"))}}})
    assert compare(loaded, expected).share == float("inf")


# encoder


def test_an_encoder_opens_anywhere_with_nothing_else(space, here):
    shutil.copytree(space / "base", "base")
    run = write_run(here / "run", here / "base", scale=0.5)
    expected = Encoder.load(run)
    vectors = expected.encode(SENTENCES)
    outcome = done(*export("encoder", "run"))
    assert "sempa-mlx embed FILE --model out" in outcome.err
    shutil.rmtree("run")
    shutil.rmtree("base")
    Path("far").mkdir()
    shutil.move("out", "far/moved")
    found = Encoder.load(here / "far" / "moved")
    assert found.settings == expected.settings
    assert found.vectors_key == expected.vectors_key
    np.testing.assert_array_equal(found.encode(SENTENCES), vectors)
    for name in ("adapter_config.json", "encoder.json"):
        assert str(here) not in Path("far/moved", name).read_text()


def test_an_encoder_can_be_named_as_the_model(space, here):
    done(*export("encoder", space / "run"))
    done("embed", space / "notes.txt", "-o", "a.npy", "--model", "out")
    expected = Encoder.load(space / "run").encode(SENTENCES)
    np.testing.assert_allclose(np.load("a.npy"), expected, atol=1e-5)
    more = ("--model", "out", "--adapter-path", space / "run")
    outcome = refused(2, "embed", space / "notes.txt", "-o", "b.npy", *more)
    assert "has an adapter of its own" in outcome.errors[0]
    shutil.move("out", "moved")
    outcome = done("search", "a.npy", "A cat", "--adapter-path", "moved", "--json")
    assert len(outcome.document["queries"][0]["hits"]) == 5


def test_an_encoder_takes_map_and_coder_along(space, here):
    shutil.copytree(space / "run", "run")
    encoder = Encoder.load("run")
    raw = encoder.raw().encode([*SENTENCES, "Two men.", "A red cat."])
    fit = fit_post(raw, "abtt", 1, encoder.vectors_key)
    mapped = Encoder(encoder.loaded, replace(encoder.settings, post=fit))
    mapped.save_settings(here / "run")
    write_coder(here / "run" / CODER_FILE, drawn_coder(encoder.vectors_key))
    export_encoder(here / "run", here / "out")
    found = Encoder.load(here / "out")
    np.testing.assert_array_equal(found.encode(SENTENCES), mapped.encode(SENTENCES))
    done("embed", space / "notes.txt", "-o", "a.npz", "--model", "out", "--sparse", "out")
    with pytest.raises(UsageError, match="belongs to other vectors"):
        export_encoder(here / "run", here / "dialled", scale=0.5)
    encoder.save_settings(here / "run")
    with pytest.raises(UsageError, match="the coder belongs to other vectors"):
        export_encoder(here / "run", here / "dialled", scale=0.5)
    assert not Path("dialled").exists()


def test_an_encoder_of_a_gguf_base_holds_that_file(here):
    tiny_gguf = pytest.importorskip("tests.tiny_gguf")
    file = here / "tiny.gguf"
    tiny_gguf.write_gguf(file, tiny_gguf.all_metadata(), tiny_gguf.random_tensors(), "Q4_1")
    run = write_run(here / "run", file)
    vectors = Encoder.load(run).encode(SENTENCES)
    done(*export("encoder", "run"))
    file.unlink()
    assert "out/base/tiny.gguf" in files_below(here)
    np.testing.assert_array_equal(Encoder.load("out").encode(SENTENCES), vectors)


def test_an_export_of_an_export_is_the_same(space, here):
    done(*export("encoder", space / "run"))
    shutil.move("out", "first")
    done(*export("encoder", "first"))
    np.testing.assert_array_equal(
        Encoder.load("out").encode(SENTENCES), Encoder.load(space / "run").encode(SENTENCES)
    )


def test_a_base_of_the_same_name_elsewhere_is_not_taken_for_one_inside(space, here, monkeypatch):
    """mlx-lm writes `--model` down as it was typed, such as ./base."""
    shutil.copytree(space / "run", "run")
    edit_json(here / "run" / CONFIG_FILE, model="./base")
    monkeypatch.chdir(space)
    assert read_adapter_config(here / "run")["model"] == "./base"
    assert Encoder.load(here / "run").loaded.location.path == Path("base")


# What every form refuses


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_without_an_adapter_is_refused(space, here, form):
    outcome = refused(1, *export(form, space / "base"))
    assert "not an adapter folder" in outcome.errors[0]
    assert files_below(here) == {}


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_adapter_is_refused(space, here, form):
    shutil.copytree(space / "run", "run")
    content = Path("run", WEIGHTS_FILE).read_bytes()
    Path("run", WEIGHTS_FILE).write_bytes(content[:-100])
    outcome = refused(1, *export(form, "run"))
    assert "unreadable" in outcome.errors[0]
    assert sorted(path.name for path in here.iterdir()) == ["run"]


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_truncated_base_is_refused(space, here, form):
    shutil.copytree(space / "base", "base")
    content = Path("base/model.safetensors").read_bytes()
    Path("base/model.safetensors").write_bytes(content[:-100])
    outcome = refused(1, *export(form, space / "run", "--model", "base"))
    assert "mlx-lm cannot load this model" in outcome.errors[0]
    assert sorted(path.name for path in here.iterdir()) == ["base"]


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize(
    ("base", "what"), [("other", "trained on other weights"), ("wider", "shape (32, 4)")]
)
def test_another_base_is_refused(space, here, form, base, what):
    outcome = refused(1, *export(form, space / "run", "--model", space / base))
    assert any(what in line for line in outcome.errors)
    assert files_below(here) == {}


@pytest.mark.parametrize("form", FORMS)
def test_a_base_that_is_gone_or_not_named_is_refused(space, here, form):
    shutil.copytree(space / "run", "run")
    edit_json(here / "run" / CONFIG_FILE, model=str(space / "gone"))
    assert "no model" in refused(1, *export(form, "run")).errors[0]
    edit_json(here / "run" / CONFIG_FILE, model=None)
    assert "names no base" in refused(1, *export(form, "run")).errors[0]
    if form != "mlx":
        done(*export(form, "run", "--model", space / "base"))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_there_stays_as_it_is(space, here, form):
    Path("out").mkdir()
    Path("out/file").write_text("precious")
    assert "exists" in refused(2, *export(form, space / "run")).errors[0]
    assert files_below(here) == {"out": None, "out/file": b"precious"}


@pytest.mark.parametrize("form", FORMS)
def test_a_place_that_cannot_be_written_is_refused(space, here, form):
    Path("file").write_text("precious")
    target = ("export", "--to", form, "--adapter-path", space / "run", "--out", "file/out")
    assert "cannot write file/out" in refused(4, *target).errors[0]
    assert files_below(here) == {"file": b"precious"}


def test_options_of_other_forms_are_refused_together(space, here):
    options = ("--q-bits", 4, "--coder", "c.safetensors", "--adapter-scale", 0.5, "--private")
    outcome = refused(2, *export("mlx", space / "run", *options))
    assert [line.split(" ")[1] for line in outcome.errors] == [
        *("--coder", "--adapter-scale", "--q-bits", "--private")
    ]
    assert files_below(here) == {}


def test_an_adapter_for_mlx_takes_map_and_coder_along(space, here):
    shutil.copytree(space / "run", "run")
    encoder = Encoder.load("run")
    fit = fit_post(encoder.raw().encode(SENTENCES), "abtt", 1, encoder.vectors_key)
    mapped = Encoder(encoder.loaded, replace(encoder.settings, post=fit))
    mapped.save_settings(here / "run")
    write_coder(here / "run" / CODER_FILE, drawn_coder(encoder.vectors_key))
    done(*export("mlx", "run"))
    assert {"post.safetensors", CODER_FILE} < {path.name for path in Path("out").iterdir()}
    np.testing.assert_array_equal(Encoder.load("out").encode(SENTENCES), mapped.encode(SENTENCES))
    modes = {Path("out", name).stat().st_mode for name in ("post.safetensors", "encoder.json")}
    assert len(modes) == 1, "who may read one may read the other"


def test_map_and_coder_fit_the_base_that_is_written_for_a_gguf_file(here):
    tiny_gguf = pytest.importorskip("tests.tiny_gguf")
    file = here / "tiny.gguf"
    tiny_gguf.write_gguf(file, tiny_gguf.all_metadata(), tiny_gguf.random_tensors(), "Q4_1")
    encoder = Encoder.load(write_run(here / "run", file))
    fit = fit_post(encoder.raw().encode(SENTENCES), "abtt", 1, encoder.vectors_key)
    mapped = Encoder(encoder.loaded, replace(encoder.settings, post=fit))
    mapped.save_settings(here / "run")
    write_coder(here / "run" / CODER_FILE, drawn_coder(encoder.vectors_key, dim=encoder.dim))
    done(*export("mlx", "run"))
    found = Encoder.load("out")
    np.testing.assert_allclose(found.encode(SENTENCES), mapped.encode(SENTENCES), atol=1e-6)
    assert found.vectors_key != mapped.vectors_key
    Path("notes.txt").write_text("\n".join(SENTENCES))
    done("embed", "notes.txt", "-o", "a.npz", "--adapter-path", "out", "--sparse", "out")


def test_another_name_of_the_base_has_not_the_commit_of_the_first(space, here):
    shutil.copytree(space / "run", "run")
    config = read_adapter_config(here / "run")
    settings = json.loads(Path("run/encoder.json").read_text())
    edit_json(here / "run" / CONFIG_FILE, sempa=config["sempa"] | {"base_revision": "b" * 40})
    edit_json(here / "run" / "encoder.json", model=settings["model"] | {"revision": "b" * 40})
    done(*export("mlx", "run", "--base", "other/model"))
    assert json.loads(Path("out", CONFIG_FILE).read_text())["sempa"]["base_revision"] is None
    model = json.loads(Path("out/encoder.json").read_text())["model"]
    assert (model["name"], model["revision"]) == ("other/model", None)


def test_other_files_in_the_folder_of_a_base_stay_there(space, here):
    shutil.copytree(space / "base", "base")
    for name in ("patients.json", "notes.txt", "results.json", "tokenizer.json.bak"):
        Path("base", name).write_text("{}")
    Path("base/LICENSE").write_text("free")
    run = write_run(here / "run", here / "base")
    for form in ("fused", "encoder"):
        done("export", "--to", form, "--adapter-path", run, "--out", form)
        names = {path.name for path in Path(form).rglob("*")}
        assert {"LICENSE", "tokenizer.json", "tokenizer_config.json"} < names
        assert not {"patients.json", "notes.txt", "results.json", "tokenizer.json.bak"} & names


@pytest.mark.parametrize("form", FORMS)
def test_a_link_or_the_folder_one_is_in_is_no_new_folder(space, here, form):
    Path("real").mkdir()
    Path("link").symlink_to("real")
    Path("dangling").symlink_to("nowhere")
    for name, what in (("link", "symbolic link"), ("dangling", "symbolic link"), (".", "you are")):
        error = refused(2, *export(form, space / "run"), "--out", name).err
        assert what in error


def test_an_encoder_that_moved_is_found_by_either_option(space, here):
    done(*export("encoder", space / "run"))
    done("embed", space / "notes.txt", "-o", "a.npy", "--model", "out")
    Path("out").rename("elsewhere")
    refused(1, "search", "a.npy", "a cat")
    by_model, by_adapter = (
        done("search", "a.npy", "a cat", option, "elsewhere").out
        for option in ("--model", "--adapter-path")
    )
    assert by_model == by_adapter
