import json
import zipfile
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from sempa_mlx.encoder.sparse_store import (
    FORMS,
    SparseStore,
    at_half_precision,
    read_store,
    write_store,
)
from sempa_mlx.errors import DataError, ResourceError
from tests.encoder.codes import drawn_codes

TEXTS = ("A cat — 猫", "", 'tab\t"quotes"\u2028', *(f"text {number}" for number in range(27)))
ABOUT = {"k": 5, "coder": {"kind": "topk"}, "encoder": {"model": "é"}}


def written(tmp_path, file_format, codes=None, texts=TEXTS):
    path = tmp_path / f"codes.{file_format}"
    codes = drawn_codes() if codes is None else codes
    write_store(path, SparseStore(codes, ABOUT, texts), file_format)
    return path


def halved(codes):
    """Round densely, as an oracle."""
    return codes.toarray().astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("file_format", FORMS)
def test_codes_and_texts_come_back_as_float16_rounds_them(tmp_path, file_format):
    codes = drawn_codes()
    store = read_store(written(tmp_path, file_format))
    np.testing.assert_array_equal(store.codes.toarray(), halved(codes))
    assert store.codes.dtype == np.float32
    assert store.codes.has_sorted_indices
    assert store.texts == TEXTS
    facts = {"format": "1", "count": 30, "latents": 50}
    assert store.about == ABOUT | facts | {"digest": store.about["digest"]}


@pytest.mark.parametrize("file_format", FORMS)
def test_the_same_codes_make_the_same_bytes(tmp_path, file_format):
    first = written(tmp_path, file_format).read_bytes()
    assert written(tmp_path, file_format).read_bytes() == first


@pytest.mark.parametrize("file_format", FORMS)
@pytest.mark.parametrize("shape", [(0, 5), (4, 5)])
def test_a_store_may_hold_nothing(tmp_path, file_format, shape):
    empty = csr_array(shape, dtype=np.float32)
    store = read_store(written(tmp_path, file_format, empty, ("",) * shape[0]))
    assert store.codes.shape == shape
    assert store.codes.nnz == 0
    assert store.texts == ("",) * shape[0]


@pytest.mark.parametrize("file_format", FORMS)
def test_texts_need_not_be_kept(tmp_path, file_format):
    assert read_store(written(tmp_path, file_format, texts=None)).texts is None


def test_plain_numpy_reads_npz_without_pickle(tmp_path):
    codes = drawn_codes()
    with np.load(written(tmp_path, "npz"), allow_pickle=False) as file:
        kinds = {name: str(file[name].dtype) for name in file.files}
        parts = file["values"].astype(np.float32), file["indices"], file["indptr"]
        found = csr_array(parts, shape=tuple(file["shape"]))
        header = json.loads(file["header"].tobytes())
        ends = [0, *file["text_ends"].tolist()]
        texts = [file["text"].tobytes()[a:b].decode() for a, b in pairwise(ends)]
    assert kinds == {
        **{"indptr": "int64", "indices": "uint16", "values": "float16", "shape": "int64"},
        **{"header": "uint8", "text": "uint8", "text_ends": "int64"},
    }
    np.testing.assert_array_equal(found.toarray(), halved(codes))
    assert header["encoder"] == {"model": "é"}
    assert tuple(texts) == TEXTS


def test_safetensors_holds_the_same_arrays(tmp_path):
    with np.load(written(tmp_path, "npz")) as file:
        arrays = {name: file[name] for name in file.files if name != "header"}
    found = load_file(written(tmp_path, "safetensors"))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(("latents", "kind"), [(65_536, "uint16"), (65_537, "uint32")])
@pytest.mark.parametrize("file_format", FORMS)
def test_latents_are_counted_in_two_bytes_while_they_fit(tmp_path, latents, kind, file_format):
    codes = csr_array(([1.0], ([0], [latents - 1])), shape=(1, latents), dtype=np.float32)
    path = written(tmp_path, file_format, codes, ("a",))
    assert read_store(path).codes.indices.tolist() == [latents - 1]
    if file_format == "npz":
        assert np.load(path)["indices"].dtype == kind


def test_the_header_also_stands_beside_the_file(tmp_path):
    path = written(tmp_path, "npz")
    beside = tmp_path / "codes.npz.json"
    assert json.loads(beside.read_text()) == read_store(path).about
    assert sorted(tmp_path.iterdir()) == [path, beside]


def test_everyone_may_read_what_a_new_file_lets_them_read(tmp_path):
    (tmp_path / "plain").touch()
    for file_format in FORMS:
        mode = written(tmp_path, file_format).stat().st_mode
        assert mode == (tmp_path / "plain").stat().st_mode


def test_the_format_is_told_by_content_not_by_name(tmp_path):
    for file_format in FORMS:
        path = tmp_path / f"codes-{file_format}"
        write_store(path, SparseStore(drawn_codes(), ABOUT), file_format)
        np.testing.assert_array_equal(read_store(path).codes.toarray(), halved(drawn_codes()))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 65519, width=32), min_size=1, max_size=12))
def test_rounding_is_that_of_numpy_and_zeros_are_left_out(values):
    codes = csr_array(np.array([values], dtype=np.float32))
    found = at_half_precision(codes)
    np.testing.assert_array_equal(found.toarray(), halved(codes))
    assert (found.data > 0).all()
    np.testing.assert_array_equal(codes.toarray(), np.array([values], dtype=np.float32))


def test_rounding_puts_latents_in_order_and_adds_up_doubles():
    codes = csr_array((np.array([1, 2, 4], dtype=np.float32), [2, 0, 2], [0, 3]), shape=(1, 3))
    found = at_half_precision(codes)
    assert (found.indices.tolist(), found.data.tolist()) == ([0, 2], [2, 5])


@pytest.mark.parametrize("value", [65_520, 1e9, np.inf, np.nan])
@pytest.mark.parametrize("file_format", FORMS)
def test_a_value_beyond_float16_writes_nothing(tmp_path, value, file_format):
    codes = csr_array(np.array([[1, 0], [value, 65_519]], dtype=np.float32))
    with pytest.raises(DataError, match=r"1 values of codes .* beyond the 65504"):
        written(tmp_path, file_format, codes, ("a", "b"))
    assert list(tmp_path.iterdir()) == []


def test_texts_and_codes_must_be_as_many(tmp_path):
    with pytest.raises(ValueError, match="29 texts of 30 codes"):
        written(tmp_path, "npz", texts=TEXTS[1:])


def test_a_place_that_cannot_be_written_is_a_resource_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        written(tmp_path / "file", "npz")


# wrong files


@pytest.mark.parametrize("file_format", FORMS)
def test_a_file_cut_anywhere_is_refused(tmp_path, file_format):
    path = written(tmp_path, file_format)
    whole = path.read_bytes()
    for length in {0, 1, 7, 8, 9, 40, *range(100, len(whole), 97), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="not a store of codes"):
            read_store(path)


@pytest.mark.parametrize("file_format", FORMS)
def test_a_changed_byte_is_refused_or_changes_nothing(tmp_path, file_format):
    """Zip files have bytes without meaning, such as dates."""
    path = written(tmp_path, file_format)
    whole, codes = path.read_bytes(), halved(drawn_codes())
    refused = 0
    for place in range(0, len(whole), 53):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            store = read_store(path)
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(store.codes.toarray(), codes)
            assert store.texts == TEXTS
    assert refused > 20


def test_a_member_that_says_it_is_encrypted_is_refused(tmp_path):
    """One wrong bit in the directory of a zip file."""
    path = written(tmp_path, "npz")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a store of codes"):
        read_store(path)


def foreign(tmp_path):
    """Files of other programs under our endings."""
    np.savez(tmp_path / "other.npz", values=np.ones(3))
    np.savez(tmp_path / "pickled.npz", header=np.array([{}], dtype=object))
    save_file({"values": np.ones(3)}, tmp_path / "other.safetensors")
    (tmp_path / "text.npz").write_text("not a store")
    (tmp_path / "empty.npz").touch()
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as file:
        file.writestr("readme", "hello")
    with (tmp_path / "array.npz").open("wb") as handle:
        np.save(handle, np.ones((3, 3)))
    return sorted(path for path in tmp_path.iterdir() if path.is_file())


def test_files_of_other_programs_are_refused(tmp_path):
    paths = foreign(tmp_path)
    assert len(paths) == 7
    for path in paths:
        with pytest.raises(DataError, match="not a store of codes"):
            read_store(path)


def test_a_store_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_store(tmp_path / "nothing.npz")


def test_a_later_format_is_refused(tmp_path):
    path = written(tmp_path, "npz")
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes()) | {"format": "2"}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="format 2"):
        read_store(path)
