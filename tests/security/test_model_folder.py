"""A model's folder is data: nothing in it runs, and nothing in it makes loading endless."""

import json
import sys

import pytest

from sempa_mlx.errors import ModelError
from sempa_mlx.model.fetched import MODEL_FILES
from sempa_mlx.model.load import load_model
from tests.tiny import write_tiny_folder

CANARY = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


@pytest.fixture
def folder(tmp_path):
    """A sound model beside code that leaves a trace when it is run."""
    folder = tmp_path / "model"
    write_tiny_folder(folder)
    for name in ("custom", "modeling_x", "tokenization_x", "__init__"):
        (folder / f"{name}.py").write_text(CANARY)
    yield folder
    assert not list(tmp_path.rglob("ran")), "code of the folder was run"
    files = (str(getattr(module, "__file__", "")) for module in list(sys.modules.values()))
    assert not any(file.startswith(str(tmp_path)) for file in files)


def change(folder, name, **changes):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | changes))


def refusal(folder):
    with pytest.raises(ModelError) as error:
        load_model(str(folder))
    return str(error.value)


def test_a_model_file_is_refused(folder):
    change(folder, "config.json", model_file="custom.py")
    assert "brings code of its own (model_file in config.json), which is never run" in refusal(
        folder
    )


def test_classes_of_the_folder_are_not_taken_where_mlx_lm_has_its_own(folder):
    names = {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "modeling_x.M"}
    change(folder, "config.json", auto_map=names)
    assert load_model(str(folder)).model.layers


@pytest.mark.parametrize("known", [True, False])
def test_a_tokenizer_of_the_folder_is_not_run(folder, known):
    own = [None, "tokenization_x.T"] if known else ["tokenization_x.S", "tokenization_x.T"]
    changes = {} if known else {"tokenizer_class": "NeverHeardOfTokenizer"}
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": own}, **changes)
    try:
        load_model(str(folder))
    except ModelError as error:
        assert "mlx-lm cannot load this model" in str(error)  # noqa: PT017 - either is right


@pytest.mark.parametrize(
    "model_type", ["custom", "../custom", "/custom", "..custom", "..utils", "__init__"]
)
def test_a_model_type_names_no_module_but_mlx_lms(folder, model_type):
    change(folder, "config.json", model_type=model_type)
    assert "mlx-lm cannot load this model" in refusal(folder)


@pytest.mark.parametrize("key", ["tool_parser_type", "chat_template_type"])
def test_a_tokenizer_names_no_module_but_mlx_lms(folder, key):
    change(folder, "tokenizer_config.json", **{key: "custom"})
    assert "mlx-lm cannot load this model" in refusal(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth", "x.pkl"])
def test_pickles_beside_the_weights_are_not_touched(folder, name):
    class Bomb:
        def __reduce__(self):
            return (open, (str(folder / "ran"), "w"))

    import pickle

    (folder / name).write_bytes(pickle.dumps(Bomb()))
    load_model(str(folder))


@pytest.mark.parametrize("part", ["config", "text_config"])
def test_endless_blocks_are_refused_before_they_are_built(folder, part):
    blocks = {"num_hidden_layers": 10**9}
    change(folder, "config.json", **(blocks if part == "config" else {"text_config": blocks}))
    assert "1000000000 blocks in the config" in refusal(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "nonsense", "9" * 5000])
def test_a_config_that_is_no_object_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    assert f"{folder}: mlx-lm cannot load this model" in refusal(folder)


def test_what_is_downloaded_is_on_a_list():
    """Weights in safetensors, JSON, text and templates; a new pattern has to be put here too."""
    known = {"*.json", "model*.safetensors", "tokenizer.model", "*.txt", "*.jinja"}
    assert set(MODEL_FILES) == known
