"""Fault 21: a model that has pickled weights only, or brings code of its own.

Loading itself: tests/model/test_load.py.
"""

import json
import shutil

import pytest

from tests.command import files_below, refused

PICKLE = b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR."


@pytest.fixture
def model(space, here):
    return shutil.copytree(space / "base", here / "model")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_pickles_are_refused_with_the_way_to_convert_them(space, here, model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(PICKLE)
    before = files_below(here)
    outcome = refused(1, "embed", space / "notes.txt", "-o", "a.npy", "--model", model)
    assert "only pickled weights (.bin), which are never loaded" in outcome.errors[0]
    assert "save_pretrained(NEW)" in outcome.err
    assert files_below(here) == before


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"model_type": "ours", "auto_map": {"AutoModel": "code.Model"}}),
        ("config.json", {"model_file": "code.py"}),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "Ours", "auto_map": {"AutoTokenizer": ["code.Ours", None]}},
        ),
    ],
)
def test_code_is_not_run_and_the_message_says_why(space, here, model, file, values):
    (model / "code.py").write_text("import pathlib; pathlib.Path('pwned').touch()\n")
    change(model / file, **values)
    if file == "tokenizer_config.json":
        (model / "tokenizer.json").unlink()
    outcome = refused(1, "embed", space / "notes.txt", "-o", "a.npy", "--model", model)
    assert str(model) in outcome.errors[0]
    assert f"code of its own ({list(values)[-1]} in {file}), which is never run" in outcome.err
    assert not (here / "pwned").exists()
    assert not (here / "a.npy").exists()
