"""A coder comes back from disk as it was, or not at all."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from sempa_mlx.encoder.coder_file import (
    CODER_FILE,
    describe_coder,
    read_coder,
    read_examples,
    write_coder,
)
from sempa_mlx.errors import ModelError
from tests.encoder.codes import drawn_coder
from tests.encoder.test_sparse import make_coder, make_vectors

EXAMPLES = {3: ("a cat", 'He said "no" — é'), 14: ("two dogs",)}


@pytest.mark.parametrize("kind", ["topk", "fista", "lexical"])
def test_coder_comes_back_exactly(tmp_path, kind):
    coder = make_coder(kind)
    write_coder(tmp_path / "c.safetensors", coder, EXAMPLES)
    again = read_coder(tmp_path / "c.safetensors", lambda: coder.atoms)
    assert again == coder
    for name in ("centre", "scale", "atoms", "bias"):
        np.testing.assert_array_equal(getattr(again, name), getattr(coder, name))
    vectors = make_vectors()
    assert (again.encode(vectors) != coder.encode(vectors)).nnz == 0
    assert read_examples(tmp_path / "c.safetensors") == EXAMPLES
    assert describe_coder(tmp_path / "c.safetensors").items() >= coder.describe().items()


def test_coder_of_a_folder_is_found(tmp_path):
    write_coder(tmp_path / CODER_FILE, make_coder())
    assert read_coder(tmp_path) == make_coder()
    assert read_examples(tmp_path) == {}


def test_lexical_coder_leaves_the_models_matrix_out(tmp_path):
    coder = make_coder("lexical", hidden=4000)
    write_coder(tmp_path / "c.safetensors", coder)
    assert (tmp_path / "c.safetensors").stat().st_size < 2000
    with pytest.raises(ModelError, match="with its model only"):
        read_coder(tmp_path / "c.safetensors")
    with pytest.raises(ModelError, match="4000 tokens of 6"):
        read_coder(tmp_path / "c.safetensors", lambda: coder.atoms[:-1])


def test_missing_coder_is_named(tmp_path):
    with pytest.raises(ModelError, match="no such coder") as caught:
        read_coder(tmp_path / "none.safetensors")
    assert "sparse fit" in caught.value.problems[0].fix


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    write_coder(path, make_coder())
    content = path.read_bytes()
    for length in (0, 7, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match="not a sparse coder"):
            read_coder(path)


def test_changed_weights_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    write_coder(path, make_coder())
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        read_coder(path)


@pytest.mark.parametrize(
    "metadata",
    [None, {"sempa_coder": "no json"}, {"sempa_coder": "{}"}, {"sempa_post": "{}"}]
    + [{"sempa_coder": json.dumps({"format": form, "kind": kind})}
       for form, kind in (("2", "topk"), ("1", "pca"))],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, metadata):
    save_file({"centre": np.zeros(3, np.float32)}, tmp_path / "c.safetensors", metadata=metadata)
    with pytest.raises(ModelError, match="not a sparse coder"):
        read_coder(tmp_path / "c.safetensors")


def test_damaged_examples_are_told(tmp_path):
    path = tmp_path / "c.safetensors"
    write_coder(path, drawn_coder("key"), EXAMPLES)
    content = path.read_bytes()
    at = content.rindex(b'"')
    path.write_bytes(content[:at] + b"," + content[at + 1 :])
    read_coder(path)
    with pytest.raises(ModelError, match="examples are damaged"):
        read_examples(path)
