import functools
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from sempa_mlx.encoder import store
from sempa_mlx.encoder.coder_file import CODER_FILE, identify, write_coder
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.encoder.sparse_embed import CODE_FORMATS, Coding, code_to_file, code_to_stream
from sempa_mlx.encoder.sparse_store import FORMS, read_store
from sempa_mlx.errors import DataError, ModelError, UsageError
from sempa_mlx.model.head import output_matrix
from tests.encoder.codes import drawn_coder
from tests.tiny import tiny_loaded

TEXTS = [f"Sentence {number} has {'very ' * (number % 4)}few words" for number in range(12)]
TEXTS[3:5] = ["", "猫"]


@functools.cache
def encoder():
    """An encoder that cuts vectors: codes must not see that."""
    return Encoder(tiny_loaded(), EncoderSettings(truncate_dim=5))


@functools.cache
def coding(kind="topk", k=6):
    atoms = np.array(output_matrix(encoder().loaded.model)) if kind == "lexical" else None
    return Coding.of(encoder(), drawn_coder(encoder().vectors_key, kind, atoms=atoms), k)


@pytest.fixture(params=[5, 12, 8192])
def window(request, monkeypatch):
    """Fewer texts than there are, exactly as many, or more."""
    monkeypatch.setattr(store, "WINDOW", request.param)


def expected(kind="topk", k=6):
    """Codes of all texts at once, of vectors as they leave the model."""
    layer = encoder().parameters.index(encoder().depth)
    raw, _ = encoder().read(TEXTS, (layer,))
    return coding(kind, k).coder.encode(raw[0, 0], k).toarray()


@pytest.mark.parametrize("file_format", FORMS)
@pytest.mark.parametrize("kind", ["topk", "fista", "lexical"])
def test_a_store_holds_the_codes_of_vectors_as_they_leave_the_model(tmp_path, file_format, kind):
    out = tmp_path / "codes"
    coded = code_to_file(coding(kind), iter(TEXTS), out, file_format=file_format)
    found = read_store(out)
    dense = expected(kind)
    np.testing.assert_allclose(found.codes.toarray(), dense, rtol=1e-3, atol=1e-6)
    assert found.texts == tuple(TEXTS)
    assert (coded.path, coded.count, coded.num_truncated) == (out, 12, 0)
    assert coded.num_values == found.codes.nnz > 0
    assert coded.sidecar == tmp_path / "codes.json"


def test_windows_do_not_matter(tmp_path, window):
    code_to_file(coding(), iter(TEXTS), tmp_path / "a.npz", file_format="npz")
    found = read_store(tmp_path / "a.npz")
    np.testing.assert_allclose(found.codes.toarray(), expected(), rtol=1e-3, atol=1e-6)
    assert found.texts == tuple(TEXTS)
    stream = io.StringIO()
    assert code_to_stream(coding(), iter(TEXTS), stream).count == 12
    code_to_file(coding(), iter(TEXTS), tmp_path / "a.jsonl", file_format="jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == stream.getvalue().encode()
    rows = [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]
    assert [(row["id"], row["text"]) for row in rows] == list(enumerate(TEXTS))
    dense = np.zeros((12, 48))
    for row in rows:
        dense[row["id"], [int(key) for key in row["vector"]]] = list(row["vector"].values())
    np.testing.assert_allclose(dense, 100 * expected(), atol=0.501)


def test_the_header_says_what_made_the_codes(tmp_path):
    coder = drawn_coder(encoder().vectors_key)
    write_coder(tmp_path / CODER_FILE, coder)
    opened = Coding.open(encoder(), tmp_path, 3, tmp_path / "run")
    code_to_file(opened, TEXTS, tmp_path / "a.npz", file_format="npz")
    about = read_store(tmp_path / "a.npz").about
    place = str((tmp_path / CODER_FILE).resolve())
    assert about["k"] == 3
    assert about["coder"] == {**identify(coder), "path": place}
    assert about["encoder"] == {
        **encoder().raw().describe(),
        "vectors": encoder().vectors_key,
        "adapter_path": str((tmp_path / "run").resolve()),
    }
    assert (about["encoder"]["normalize"], about["encoder"]["truncate_dim"]) == (False, None)


def test_texts_are_left_out_if_asked(tmp_path):
    out = tmp_path / "a.npz"
    code_to_file(coding(), TEXTS, out, file_format="npz", keep_texts=False)
    assert read_store(out).texts is None


@pytest.mark.parametrize("kind", ["topk", "fista", "lexical"])
def test_a_coder_is_read_from_its_file_or_run_folder(tmp_path, kind):
    write_coder(tmp_path / CODER_FILE, coding(kind).coder)
    for path in (tmp_path, tmp_path / CODER_FILE):
        codes, _ = Coding.open(encoder(), path).encode(TEXTS)
        np.testing.assert_array_equal(codes.toarray(), expected(kind))


def test_a_coder_of_other_vectors_is_refused(tmp_path):
    write_coder(tmp_path / "a.safetensors", drawn_coder("feedfacefeedface"))
    with pytest.raises(UsageError, match="fitted to the vectors of another model") as caught:
        Coding.open(encoder(), tmp_path / "a.safetensors")
    assert caught.value.problems[0].evidence.startswith("to feedfacefeedface; these are")
    assert "sparse fit" in caught.value.problems[0].fix
    other = Encoder(encoder().loaded, EncoderSettings(method="mean"))
    with pytest.raises(UsageError, match="another model, adapter or method"):
        Coding.of(other, coding().coder)


@pytest.mark.parametrize("k", [0, 49])
def test_k_must_be_one_of_the_latents(k):
    with pytest.raises(UsageError, match=f"k must lie in 1 to 48, the number of latents, not {k}"):
        Coding.of(encoder(), coding().coder, k)


def test_a_coder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match="no such coder"):
        Coding.open(encoder(), tmp_path)


def failing():
    yield from TEXTS[:7]
    raise DataError("line 8 is not UTF-8")


@pytest.mark.parametrize("file_format", CODE_FORMATS)
@pytest.mark.parametrize("fault", ["source", "nan", "overflow"])
def test_what_fails_leaves_the_old_file(tmp_path, monkeypatch, file_format, fault):
    monkeypatch.setattr(store, "WINDOW", 5)
    out = tmp_path / "codes"
    out.write_bytes(b"old")
    used = coding()
    if fault == "nan":
        broken = tiny_loaded()
        broken.model.model.norm.weight = broken.model.model.norm.weight * float("nan")
        made_by = Encoder(broken)
        used = Coding.of(made_by, drawn_coder(made_by.vectors_key))
    elif fault == "overflow":
        coder = replace(coding().coder, atoms=1e6 * coding().coder.atoms)
        used = Coding.of(encoder(), coder)
    if fault == "overflow" and file_format == "jsonl":
        assert code_to_file(used, TEXTS, out, file_format=file_format).count == 12
        return
    match = {"source": "line 8", "nan": "hold NaN", "overflow": "float16"}[fault]
    with pytest.raises(DataError, match=match):
        code_to_file(used, failing() if fault == "source" else TEXTS, out, file_format=file_format)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_codes_without_values_are_counted(tmp_path):
    coder = coding().coder
    silent = replace(coder, bias=np.full(48, -1e3, dtype=np.float32))
    coded = code_to_file(Coding.of(encoder(), silent), TEXTS, tmp_path / "a.npz", file_format="npz")
    assert (coded.num_values, coded.num_empty) == (0, 12)
    assert read_store(tmp_path / "a.npz").codes.shape == (12, 48)


def test_no_texts_make_an_empty_store(tmp_path):
    assert code_to_file(coding(), [], tmp_path / "a.npz", file_format="npz").count == 0
    assert read_store(tmp_path / "a.npz").codes.shape == (0, 48)
