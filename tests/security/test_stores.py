"""Stores of vectors and codes: no pickle, nothing unpacked, no array longer than its file."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from sempa_mlx.encoder.dense_search import read_dense
from sempa_mlx.encoder.sparse_store import SparseStore, read_store, write_store
from sempa_mlx.errors import DataError
from tests.encoder.codes import drawn_codes


class Bomb:
    """Unpickled, it raises what no reader catches."""

    def __reduce__(self):
        return (eval, ("1 / 0",))


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "codes.npz"
    write_store(path, SparseStore(drawn_codes(), {"k": 5}, None), "npz")
    return path


def repack(path, compression=zipfile.ZIP_STORED, **parts):
    """Write the zip file again, with other parts."""
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, part in (content | parts).items():
            file.writestr(name, part)


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def claimed(shape, dtype="<f2"):
    """The head of an array file, and hardly anything after it."""
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + bytes(64)


def test_the_bomb_works():
    with pytest.raises(ZeroDivisionError):
        pickle.loads(pickle.dumps(Bomb()))


def test_objects_in_codes_are_not_unpickled(store):
    pickled = npy(np.array([Bomb()], dtype=object), allow_pickle=True)
    repack(store, **{"values.npy": pickled})
    with pytest.raises(DataError, match="not a store of codes"):
        read_store(store)


def test_objects_in_vectors_are_not_unpickled(tmp_path):
    path = tmp_path / "vectors.npy"
    path.write_bytes(npy(np.array([[Bomb()]], dtype=object), allow_pickle=True))
    path.with_name("vectors.npy.json").write_text("{}")
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(DataError, match="not a file of vectors"):
        read_dense(path)


def test_a_pickle_under_the_name_of_a_store_is_refused(store):
    store.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="not a store of codes"):
        read_store(store)


def test_compressed_parts_are_not_unpacked(store):
    repack(store, zipfile.ZIP_DEFLATED, **{"text.npy": npy(np.zeros(2**27, dtype=np.uint8))})
    assert store.stat().st_size < 2**20
    with pytest.raises(DataError, match="its parts are compressed"):
        read_store(store)


@pytest.mark.parametrize("shape", [(2**40,), (2**62,), (2**20, 2**20), (2**63 - 1, 2)])
def test_an_array_longer_than_its_file_is_refused(store, tmp_path, shape):
    repack(store, **{"values.npy": claimed(shape)})
    with pytest.raises(DataError, match="not a store of codes"):
        read_store(store)
    path = tmp_path / "vectors.npy"
    path.write_bytes(claimed(shape, "<f4"))
    for name in ("vectors.json", "vectors.npy.json"):
        (tmp_path / name).write_text(json.dumps({"count": 1, "dim": 1, "normalize": True}))
    with pytest.raises(DataError, match="not a file of vectors"):
        read_dense(path)


def test_parts_with_the_names_of_paths_are_not_written(store, tmp_path):
    repack(store, **{"../outside.npy": npy(np.zeros(3))})
    with pytest.raises(DataError, match="its content is not what was written"):
        read_store(store)
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npz", "codes.npz.json"]
