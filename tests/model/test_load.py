import importlib
import json
import logging
import shutil

import huggingface_hub
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from huggingface_hub import errors as hub
from mlx.utils import tree_flatten
from mlx_lm.utils import quantize_model

from sempa_mlx import runtime
from sempa_mlx.errors import ModelError
from sempa_mlx.model import load
from sempa_mlx.model.fetched import MODEL_FILES
from sempa_mlx.model.identity import fingerprint
from sempa_mlx.model.load import ALIASES, Alias, load_model, locate
from tests.arrays import assert_close
from tests.pool import pool_share
from tests.tiny import END, START, tiny_config, tiny_tokenizer, write_tiny_folder
from tests.tiny_gguf import all_metadata, random_tensors, write_gguf

TOKENS = mx.array([[5, 9, 17, 33, 2, 64]])


@pytest.fixture
def folder(tmp_path):
    write_tiny_folder(tmp_path / "model")
    return tmp_path / "model"


def problem_of(call, *args, **kwargs):
    """The one Problem of a ModelError."""
    with pytest.raises(ModelError) as error:
        call(*args, **kwargs)
    (problem,) = error.value.problems
    return problem


# Finding


def test_a_folder_is_found_and_loaded(folder):
    loaded = load_model(str(folder), dtype="float32")
    assert (loaded.location.name, loaded.location.origin) == (str(folder), "folder")
    assert loaded.location.revision is None
    original = write_tiny_folder(folder.parent / "again")
    np.testing.assert_array_equal(np.array(loaded.model(TOKENS)), np.array(original(TOKENS)))
    assert loaded.tokenizer.encode("Two dogs") == tiny_tokenizer().encode("Two dogs")
    assert loaded.tokenizer.has_chat_template
    assert loaded.fingerprint == fingerprint([folder / "model.safetensors"])


def test_a_loaded_model_is_frozen_and_in_evaluation_mode(folder):
    model = load_model(str(folder)).model
    assert tree_flatten(model.trainable_parameters()) == []
    assert not model.training


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_a_text_longer_than_the_model_takes_is_nothing_to_warn_of(folder, form, caplog):
    """As of `objective.kl_text`, which is a file of any length."""
    if form == "gguf":
        write_gguf(folder / "a.gguf", all_metadata(), random_tensors())
    tokenizer = load_model(str(folder / "a.gguf" if form == "gguf" else folder)).tokenizer
    longest = tokenizer._tokenizer.model_max_length
    assert len(tokenizer.encode("a b " * longest)) > longest
    assert caplog.text == ""
    logging.getLogger("transformers").warning("another")
    assert "another" in caplog.text


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_precision_is_what_was_asked_for(folder, name):
    loaded = load_model(str(folder), dtype=name)
    assert loaded.dtype == getattr(mx, name)
    assert {value.dtype for _, value in tree_flatten(loaded.model.parameters())} == {loaded.dtype}


def test_a_gguf_file_is_found_by_its_ending(tmp_path):
    (tmp_path / "m.gguf").touch()
    (tmp_path / "m.bin").touch()
    assert locate(str(tmp_path / "m.gguf")).origin == "GGUF file"
    problem = problem_of(locate, str(tmp_path / "m.bin"))
    assert "not a folder, a .gguf file, a Hub id or an alias" in problem.what


def test_an_alias_is_the_file_in_its_package(tmp_path, monkeypatch):
    package = tmp_path / "tiny_embedded"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / "model.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ALIASES, "tiny", Alias("tiny_embedded", "model.gguf", "owner/tiny"))
    found = locate("tiny")
    assert found.path == package / "model.gguf"
    assert found.origin == "embedded in the package tiny_embedded"


@pytest.mark.parametrize("present", [False, True], ids=["no package", "no file in the package"])
def test_an_alias_without_its_package_comes_from_the_hub(tmp_path, monkeypatch, folder, present):
    if present:
        (tmp_path / "tiny_missing").mkdir()
        (tmp_path / "tiny_missing" / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ALIASES, "tiny", Alias("tiny_missing", "model.gguf", "owner/tiny"))
    asked = hub_answers(monkeypatch, folder)
    assert locate("tiny").origin == "Hub owner/tiny"
    assert asked == [("owner/tiny", None)]


def test_an_alias_with_a_revision_comes_from_the_hub(monkeypatch, folder):
    asked = hub_answers(monkeypatch, folder)
    locate("smollm2-135m", "v1")
    assert asked == [("HuggingFaceTB/SmolLM2-135M-Instruct", "v1")]


@pytest.mark.parametrize(
    "name",
    ["smollm2-135mm", "SmolLM2-135m", "smollm-135m"],
)
def test_a_mistyped_alias_names_the_close_one(name):
    problem = problem_of(locate, name)
    assert problem.what.startswith(f"no model `{name}`")
    assert problem.fix.startswith("did you mean `smollm2-135m`?")


@pytest.mark.parametrize(
    "name", ["nothing-like-it", "./nowhere/model", "/nowhere/model", "~/nope", "a/b/c", "x/y.gguf"]
)
def test_what_cannot_be_a_hub_id_is_never_asked_for(name, monkeypatch):
    asked = hub_answers(monkeypatch, None)
    problem = problem_of(locate, name)
    assert "no model" in problem.what
    assert "aliases: smollm2-135m" in problem.fix
    assert asked == []


# Folders that do not fit


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    problem = problem_of(locate, str(tmp_path))
    assert problem.what == "missing: model*.safetensors"
    assert problem.place == str(tmp_path)
    assert "mlx_lm convert" in problem.fix


def test_everything_that_a_folder_misses_is_named(tmp_path):
    assert problem_of(locate, str(tmp_path)).what == "missing: config.json, model*.safetensors"


def test_pickled_weights_are_never_loaded(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    problem = problem_of(load_model, str(tmp_path))
    assert problem.what.startswith("only pickled weights (.bin), which are never loaded")


@pytest.mark.parametrize(
    "config",
    ["{", '{"model_type": "nope"}', '{"hidden_size": 3}', '{"model_type": "llama"}'],
    ids=["broken", "unknown", "typeless", "incomplete"],
)
def test_a_config_that_mlx_lm_cannot_use(folder, config):
    (folder / "config.json").write_text(config)
    problem = problem_of(load_model, str(folder))
    assert problem.what.startswith("mlx-lm cannot load this model: ")
    assert problem.place == str(folder)


def test_weights_that_do_not_fit_the_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    assert "cannot load this model" in problem_of(load_model, str(folder)).what


def test_truncated_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    assert "cannot load this model" in problem_of(load_model, str(folder)).what


def test_a_folder_without_a_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "cannot load this model" in problem_of(load_model, str(folder)).what


def test_every_end_token_of_the_config_ends_generation(folder):
    tokenizer = tiny_tokenizer()
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in (START, END))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [start, end]}))
    assert load_model(str(folder)).tokenizer.eos_token_ids == {start, end}


# The Hub


def hub_answers(monkeypatch, answer):
    """Let the Hub give a folder or raise an error; return what it is asked for."""
    asked = []

    def snapshot_download(repo, *, revision, allow_patterns):
        asked.append((repo, revision))
        assert allow_patterns == MODEL_FILES
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def http_error(kind, status):
    # The Hub's HTTP library has another name in another version.
    http = importlib.import_module(hub.Response.__module__.partition(".")[0])
    request = http.Request("GET", "https://huggingface.co/api/models/owner/model")
    return kind("the Hub says no", response=http.Response(status, request=request))


def test_a_hub_model_keeps_its_commit(monkeypatch, folder):
    commit = folder.parent / "snapshots" / "0123abcd"
    shutil.copytree(folder, commit)
    asked = hub_answers(monkeypatch, commit)
    loaded = load_model("owner/model", revision="main")
    assert asked == [("owner/model", "main")]
    assert loaded.location.origin == "Hub owner/model"
    assert loaded.location.revision == "0123abcd"


def test_no_pickles_and_no_code_are_downloaded():
    assert not any(pattern.endswith((".bin", ".py", ".pt", "*")) for pattern in MODEL_FILES)


@pytest.mark.parametrize(
    ("error", "what", "fix"),
    [
        (
            http_error(hub.GatedRepoError, 403),
            "the model `owner/model` is gated",
            "hf auth login",
        ),
        (
            http_error(hub.RepositoryNotFoundError, 404),
            "no model `owner/model` on the Hub",
            "check its name",
        ),
        (
            http_error(hub.RevisionNotFoundError, 404),
            "`owner/model` has no revision 'v9'",
            "or where the model lies: --model",
        ),
        (hub.HFValidationError("bad name"), "no model `owner/model`", "aliases"),
        (
            hub.LocalEntryNotFoundError("not in the cache"),
            "`owner/model` is not in the local cache and the Hub cannot be reached",
            "hf download owner/model",
        ),
        (
            http_error(hub.HfHubHTTPError, 503),
            "`owner/model` is not in the local cache and the Hub cannot be reached",
            "hf download owner/model",
        ),
        (
            hub.OfflineModeIsEnabled("offline"),
            "`owner/model` is not in the local cache and the Hub cannot be reached",
            "smollm2-135m",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_way_the_hub_fails_has_a_cause_and_a_fix(monkeypatch, error, what, fix):
    hub_answers(monkeypatch, error)
    problem = problem_of(load_model, "owner/model", revision="v9")
    assert problem.what.startswith(what)
    assert fix in problem.fix


def test_the_real_client_without_a_network():
    problem = problem_of(locate, "sempa-mlx-tests/no-such-model")
    assert "is not in the local cache and the Hub cannot be reached" in problem.what


def test_a_hub_model_without_safetensors(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    hub_answers(monkeypatch, tmp_path)
    assert problem_of(locate, "owner/model").what == "missing: model*.safetensors"


# Quantised models


@pytest.fixture
def quantised(tmp_path):
    """A folder of 4-bit weights, and the float32 weights they stand for."""
    changes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    model = write_tiny_folder(tmp_path, **changes)
    nn.quantize(model, group_size=32, bits=4)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization"] = {"group_size": 32, "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    meant = {}
    for name, value in weights.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.scales" in weights and name.endswith(".weight"):
            scales, biases = weights[f"{stem}.scales"], weights[f"{stem}.biases"]
            meant[name] = mx.dequantize(value, scales, biases, group_size=32, bits=4)
        elif not name.endswith((".scales", ".biases")):
            meant[name] = value
    return tmp_path, meant


def test_a_quantised_folder_is_unpacked_for_an_explicit_precision(quantised):
    folder, meant = quantised
    model = load_model(str(folder), dtype="float32").model
    assert_close(model.parameters(), meant, atol=1e-6)


def test_auto_unpacks_on_a_cpu_and_keeps_packed_on_a_gpu(quantised, monkeypatch):
    folder, _ = quantised
    for is_gpu in (False, True):
        monkeypatch.setattr(runtime, "is_gpu", lambda answer=is_gpu: answer)
        loaded = load_model(str(folder))
        packed = [m for m in loaded.model.modules() if isinstance(m, nn.QuantizedLinear)]
        assert bool(packed) == is_gpu
        assert loaded.dtype == (mx.bfloat16 if is_gpu else mx.float32)


# Kinds


def test_fast_functions_are_asked_for_with_the_loaded_precision(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(load, "use_fast_functions", lambda _model, dtype: asked.append(dtype))
    load_model(str(folder), dtype="float16")
    assert asked == [mx.float16]


@pytest.mark.parametrize(("is_kept", "share"), [(True, 0.01), (False, 0.1)])
def test_the_pool_is_small_where_the_c_library_keeps_what_is_freed(
    is_kept, share, folder, monkeypatch
):
    monkeypatch.setattr(load, "keep_freed_memory", lambda: is_kept)
    monkeypatch.setattr(runtime, "is_gpu", lambda: False)
    load_model(str(folder))
    assert pool_share() == pytest.approx(share, rel=1e-6)


def test_the_pool_is_large_on_a_gpu(folder, monkeypatch):
    monkeypatch.setattr(load, "keep_freed_memory", lambda: pytest.fail("asked on a GPU"))
    monkeypatch.setattr(runtime, "is_gpu", lambda: True)
    load_model(str(folder), dtype="float32")
    assert pool_share() == pytest.approx(0.1, rel=1e-6)


def test_a_tiny_config_is_whole():
    """The helper's folder is what mlx-lm's own config reader expects."""
    assert tiny_config("llama")["model_type"] == "llama"
    assert tiny_config("llama-untied")["model_type"] == "llama"


def test_quantised_weights_are_unpacked_without_rounding_to_their_scales(tmp_path):
    model = write_tiny_folder(tmp_path / "base", hidden_size=64, intermediate_size=64)
    model, config = quantize_model(model, {}, 64, 4)
    model.set_dtype(mx.bfloat16)  # as mlx-lm writes scales
    found = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(found | config))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(tmp_path / "base" / "model.safetensors"), weights)
    name = "model.layers.0.mlp.up_proj"
    packed, scales, biases = (weights[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
    exact = mx.dequantize(
        packed, scales.astype(mx.float32), biases.astype(mx.float32), group_size=64, bits=4
    )
    loaded = load_model(str(tmp_path / "base"), dtype="float32")
    unpacked = dict(tree_flatten(loaded.model.parameters()))[f"{name}.weight"]
    np.testing.assert_array_equal(np.array(unpacked), np.array(exact))


TRANSPORT = hub.HfHubHTTPError.__bases__[0]  # of the HTTP library, whose name changes


@pytest.mark.parametrize("error", [TRANSPORT("reset"), RuntimeError("Data processing error")])
def test_a_connection_that_breaks_half_way_is_no_bug(error, monkeypatch):
    def broken(*_arguments, **_options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(ModelError, match="fetching `owner/model` was cut off") as caught:
        load_model("owner/model")
    assert "run it again" in caught.value.problems[0].fix


@pytest.mark.parametrize("missing", ["README.md", "config.json", "tokenizer.json"])
def test_a_snapshot_that_lacks_what_nobody_needs_is_whole(missing, tmp_path, monkeypatch):
    """With huggingface_hub itself, which knows all files of a revision."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "models--owner--model", 40 * "c"
    write_tiny_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "trees").mkdir()
    names = [path.name for path in (repository / "snapshots" / commit).iterdir()]
    files = {name: {"size": 9, "blob_id": 40 * "a"} for name in (*names, "onnx/config.json")}
    listing = {"format_version": 1, "files": files}
    (repository / "trees" / f"{commit}.json").write_text(json.dumps(listing))
    (repository / "snapshots" / commit / missing).unlink(missing_ok=True)
    if missing == "README.md":
        assert load_model("owner/model").location.revision == commit
    else:
        with pytest.raises(ModelError, match="not in the local cache"):
            load_model("owner/model")
