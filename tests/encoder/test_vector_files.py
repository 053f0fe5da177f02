"""Each format of vectors: what other readers find in it, what ours does, and what breaks it."""

import csv
import functools
import json
import shutil
import struct
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sempa_mlx.encoder import parquet_file, store
from sempa_mlx.encoder.dense_search import known_lines, read_dense
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.line_ids import line_ids
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.encoder.sparse_store import holds_codes
from sempa_mlx.encoder.spool import spool
from sempa_mlx.encoder.store import WRITERS, embed_to_file
from sempa_mlx.encoder.text_files import read_csv, read_jsonl
from sempa_mlx.encoder.vector_form import FORMATS, Window, format_of, sidecar_path
from sempa_mlx.errors import DataError, ResourceError, UsageError
from tests.command import note_embedded
from tests.tiny import tiny_loaded

DIM = 32
TEXTS = [f"Sentence {number} has {'very ' * (number % 4)}few words" for number in range(20)]
TEXTS[3:7] = ['tabs\tand "quotes", commas\\ and \u2028 and 猫', "", "=1+1", "a\rb"]
SELF_CONTAINED = ("npz", "safetensors", "parquet")
WITH_TEXTS = ("jsonl", "csv", "parquet")


@functools.cache
def encoder(**changes):
    return Encoder(tiny_loaded(), EncoderSettings(**changes))


@functools.cache
def expected():
    return encoder().encode(TEXTS)


def written(tmp_path, file_format, texts=TEXTS, **options):
    out = tmp_path / f"a.{file_format}"
    embed_to_file(encoder(), iter(texts), out, file_format=file_format, **options)
    return out


# Readers of others: each returns (vectors, texts or hashes, the header inside).


def by_numpy(path):
    return np.load(path), np.load(path.with_name("a.ids.npy")), None


def by_npz(path):
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"embeddings", "ids", "header"}
        return file["embeddings"], file["ids"], file["header"].tobytes().decode()


def by_safetensors(path):
    from safetensors import safe_open
    from safetensors.numpy import load_file

    with safe_open(path, framework="numpy") as file:
        header = file.metadata()["sempa_vectors"]
    found = load_file(path)
    return found["embeddings"], found["ids"], header


def by_json(path):
    with path.open(encoding="utf-8", newline="\n") as lines:
        rows = [json.loads(line) for line in lines]
    return np.array([row["embedding"] for row in rows]), [row["text"] for row in rows], None


def by_csv(path):
    with path.open(encoding="utf-8", newline="") as lines:
        head, *rows = csv.reader(lines)
    assert head == ["text", *(f"e{number}" for number in range(DIM))]
    return np.array([row[1:] for row in rows], dtype=np.float64), [row[0] for row in rows], None


def by_pyarrow(path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path)
    vectors = np.array(table["embedding"].to_pylist(), dtype=np.float32)
    header = parquet.read_metadata(path).metadata[b"sempa_vectors"].decode()
    return vectors, table["text"].to_pylist(), header


READERS = {
    **{"npy": by_numpy, "npz": by_npz, "safetensors": by_safetensors},
    **{"jsonl": by_json, "csv": by_csv, "parquet": by_pyarrow},
}


@pytest.mark.parametrize("size", [7, 20, 8192])
@pytest.mark.parametrize("file_format", FORMATS)
def test_other_readers_find_the_same_float32(tmp_path, monkeypatch, file_format, size):
    monkeypatch.setattr(store, "WINDOW", size)
    path = written(tmp_path, file_format, source=tmp_path / "notes.txt")
    vectors, lines, header = READERS[file_format](path)
    npy = written(tmp_path / "b", "npy")
    np.testing.assert_array_equal(vectors.astype(np.float32), np.load(npy))
    np.testing.assert_allclose(vectors, expected(), atol=1e-6)
    if file_format in WITH_TEXTS:
        assert lines == TEXTS
    else:
        np.testing.assert_array_equal(lines, line_ids(TEXTS))
    beside = sidecar_path(path).read_text(encoding="utf-8")
    assert (header is not None) == (file_format in SELF_CONTAINED)
    assert header in (None, beside)
    about = json.loads(beside)
    assert about["source"] == str(tmp_path / "notes.txt")
    assert (about["count"], about["dim"], about["dtype"]) == (20, DIM, "float32")
    assert about["vectors"] == encoder().vectors_key
    assert {"template", "model", "ids"} <= about.keys()


@pytest.mark.parametrize("file_format", FORMATS)
def test_ours_opens_what_was_written(tmp_path, file_format):
    path = written(tmp_path, file_format)
    if file_format in SELF_CONTAINED:
        sidecar_path(path).unlink()
    found = read_dense(path)
    assert isinstance(found.vectors, np.memmap)
    np.testing.assert_array_equal(found.vectors, np.load(written(tmp_path / "b", "npy")))
    assert found.about["count"] == 20
    assert (found.texts is not None) == (file_format in WITH_TEXTS)
    if found.texts is not None:
        assert [found.texts[row] for row in (19, *range(19))] == [TEXTS[19], *TEXTS[:19]]
    [[(row, score)]] = found.search(expected()[8:9], 1)
    assert row == 8
    assert score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("file_format", FORMATS)
def test_no_texts_make_a_file_of_none(tmp_path, file_format):
    found = read_dense(written(tmp_path, file_format, []))
    assert found.vectors.shape == (0, DIM)
    assert found.search(expected()[:2], 3) == [[], []]


@pytest.mark.parametrize("file_format", FORMATS)
def test_lines_of_any_format_are_kept(tmp_path, monkeypatch, file_format):
    path = written(tmp_path, file_format)
    known = known_lines(encoder(), path, None)
    texts = ["A new line", *TEXTS[10:]]
    embedded = note_embedded(monkeypatch)
    again = embed_to_file(encoder(), texts, path, file_format=file_format, known=known)
    assert embedded == ["A new line"]
    assert again.num_kept == 10
    np.testing.assert_allclose(read_dense(path).vectors[1:], expected()[10:], atol=1e-6)


@pytest.mark.parametrize("file_format", FORMATS)
def test_lines_of_another_encoder_are_not_kept(tmp_path, file_format):
    path = written(tmp_path, file_format)
    with pytest.raises(UsageError, match="vectors: ") as caught:
        known_lines(encoder(method="mean"), path, None)
    assert "--force" in caught.value.state


def test_numbers_of_npz_and_safetensors_are_aligned(tmp_path):
    """So that a product over mapped rows needs no copy of them."""
    for file_format in ("npy", "npz", "safetensors"):
        vectors = read_dense(written(tmp_path, file_format)).vectors
        assert vectors.ctypes.data % 64 == 0


def test_mlx_opens_safetensors(tmp_path):
    import mlx.core as mx

    arrays, about = mx.load(str(written(tmp_path, "safetensors")), return_metadata=True)
    np.testing.assert_allclose(np.array(arrays["embeddings"]), expected(), atol=1e-6)
    assert json.loads(about["sempa_vectors"])["count"] == 20


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays(np.float32, st.tuples(st.integers(0, 5), st.just(3)), elements=numbers), st.data())
def test_any_float32_and_any_text_come_back_bit_for_bit(tmp_path_factory, vectors, data):
    folder = tmp_path_factory.mktemp("any")
    text = st.text(st.characters(codec="utf-8", exclude_characters="\n\0"))
    texts = data.draw(st.lists(text, min_size=len(vectors), max_size=len(vectors)))
    windows = [Window(texts[:2], vectors[:2], line_ids(texts[:2]))]
    windows += [Window(texts[2:], vectors[2:], line_ids(texts[2:]))]
    about = json.dumps({"count": len(texts), "dim": 3, "normalize": True})
    for file_format, write in WRITERS.items():
        path = folder / f"a.{file_format}"
        write(path, windows, 3, lambda: about)
        sidecar_path(path).write_text(about)
        found = read_dense(path)
        assert found.vectors.tobytes() == vectors.tobytes()
        assert found.ids.tolist() == line_ids(texts).tolist()


def test_a_text_longer_than_a_csv_field_usually_is_comes_back(tmp_path):
    text, path = "word " * 40_000, tmp_path / "a.csv"
    WRITERS["csv"](path, [Window([text], np.ones((1, 2), np.float32), line_ids([text]))], 2, str)
    [(texts, _)] = read_csv(path, 2)
    assert texts == [text]


# What breaks them


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_that_was_cut_is_refused(tmp_path, file_format):
    path = written(tmp_path, file_format)
    whole = path.read_bytes()
    for length in (0, 1, 8, 70, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        if file_format == "jsonl" and length == len(whole) - 1:
            assert read_dense(path).about["count"] == 20  # only the last line feed is missing
            continue
        with pytest.raises(DataError) as caught:
            read_dense(path)
        assert str(path) in str(caught.value) or str(sidecar_path(path)) in str(caught.value)


@pytest.mark.parametrize("file_format", ["jsonl", "csv"])
def test_rows_cut_at_a_line_are_counted(tmp_path, file_format):
    path = written(tmp_path, file_format)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(DataError, match="belongs to 20 vectors of 32 numbers") as caught:
        read_dense(path)
    assert caught.value.problems[0].evidence == f"{path.name} has 19 of 32"


def other_dimension(path):
    """Make the header say 31 numbers."""
    header = sidecar_path(path).read_text()
    changed = header.replace('"dim": 32', '"dim": 31')
    assert changed != header
    sidecar_path(path).write_text(changed)
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        old, new = json.dumps(header).encode(), json.dumps(changed).encode()
        path.write_bytes(content.replace(old, new))
    elif path.suffix == ".npz":
        with np.load(path) as file:
            arrays = dict(file) | {"header": np.frombuffer(changed.encode(), np.uint8)}
        np.savez(path, **arrays)
    elif path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(path)
        parquet.write_table(table.replace_schema_metadata({"sempa_vectors": changed}), path)


@pytest.mark.parametrize("file_format", FORMATS)
def test_another_dimension_is_refused(tmp_path, file_format):
    path = written(tmp_path, file_format)
    other_dimension(path)
    with pytest.raises(DataError, match=r"31|e30"):
        read_dense(path)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_of_something_else_is_refused(tmp_path, file_format):
    path = written(tmp_path, file_format)
    about = sidecar_path(path).read_text()
    for content in (b"PK\3\4", b"no vectors\n", b"\x93NUMPY\1\0", struct.pack("<Q", 2) + b"{}"):
        path.write_bytes(content)
        with pytest.raises(DataError):
            read_dense(path)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        read_dense(path)
    assert sidecar_path(path).read_text() == about


def test_members_that_others_packed_are_refused(tmp_path):
    path = written(tmp_path, "npz")
    with np.load(path) as file:
        np.savez_compressed(path, **dict(file))
    with pytest.raises(DataError, match=r"embeddings.npy is compressed"):
        read_dense(path)
    np.savez(path, **{**dict(np.load(path)), "embeddings": np.array([{}], dtype=object)})
    with pytest.raises(DataError, match="no matrix of float32"):
        read_dense(path)


def test_a_member_that_says_it_is_encrypted_is_refused(tmp_path):
    path = written(tmp_path, "npz")
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 8] |= 1  # of the header
    path.write_bytes(content)
    with pytest.raises(DataError, match="is encrypted"):
        read_dense(path)


def test_a_header_that_is_no_python_is_refused(tmp_path):
    path = written(tmp_path, "npy")
    path.write_bytes(path.read_bytes().replace(b"': False", b"'[ False", 1))
    with pytest.raises(DataError, match="it is damaged"):
        read_dense(path)


def test_every_fault_of_a_text_file_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = ['{"text": "a", "embedding": [1, 2]}', '{"text": "a"}', '{"embedding": [1, 2]}', "[]"]
    rows += ['{"text": "b", "embedding": [1]}', '{"text": "b", "embedding": [1, "x"]}', "{"]
    path.write_text("\n".join(rows))
    with pytest.raises(DataError) as caught:
        list(read_jsonl(path, 2))
    assert [each.place for each in caught.value.problems] == [f"{path}:{n}" for n in range(2, 8)]
    (tmp_path / "a.csv").write_text("text,e0,e1\na,1,2\nb,1\n\nc,1,x\n")
    with pytest.raises(DataError) as caught:
        list(read_csv(tmp_path / "a.csv", 2))
    assert [each.place.rpartition(":")[2] for each in caught.value.problems] == ["3", "4", "5"]


def test_numbers_too_large_for_float32_are_found_when_they_are_searched(tmp_path):
    path = written(tmp_path, "jsonl", TEXTS[:1])
    row = json.loads(path.read_text())
    row["embedding"][3] = 1e300
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="1 of 1 vectors hold NaN or infinity"):
        read_dense(path).search(expected()[:1], 1)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A file of each format, to be copied with faults."""
    folder = tmp_path_factory.mktemp("intact")
    return {name: written(folder, name, TEXTS[:4]) for name in FORMATS}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FORMATS), st.data())
def test_changed_bytes_are_found_or_read(tmp_path, intact, file_format, data):
    """Formats have no check sum of their numbers: what is refused is refused in a clear way."""
    content = intact[file_format].read_bytes()
    ends = st.integers(0, 200) | st.integers(max(0, len(content) - 400), len(content) - 1)
    start = data.draw(ends | st.integers(0, len(content) - 1))
    new = data.draw(st.binary(min_size=1, max_size=4))
    path = tmp_path / f"a.{file_format}"
    path.unlink(missing_ok=True)  # what is mapped must not change
    path.write_bytes(content[:start] + new + content[start + len(new) :])
    shutil.copy(sidecar_path(intact[file_format]), sidecar_path(path))
    try:
        found = read_dense(path)
    except DataError:
        return
    assert found.vectors.shape == (4, DIM)


def failing():
    """Good texts for more than one window, then a fault."""
    yield from TEXTS[:10]
    raise DataError("line 11 is not UTF-8")


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_source_that_fails_leaves_no_file(tmp_path, monkeypatch, file_format):
    monkeypatch.setattr(store, "WINDOW", 7)
    with pytest.raises(DataError, match="line 11"):
        embed_to_file(encoder(), failing(), tmp_path / "out", file_format=file_format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_source_that_fails_leaves_the_old_file(tmp_path, monkeypatch, file_format):
    monkeypatch.setattr(store, "WINDOW", 7)
    out = tmp_path / f"out.{file_format}"
    beside = sidecar_path(out)
    out.write_bytes(b"old vectors")
    beside.write_text("old facts")
    with pytest.raises(DataError):
        embed_to_file(encoder(), failing(), out, file_format=file_format)
    assert out.read_bytes() == b"old vectors"
    assert beside.read_text() == "old facts"
    assert sorted(tmp_path.iterdir()) == sorted([beside, out])


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, file_format):
    """The file beside is written last."""
    out = written(tmp_path, file_format)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_text

    def full(self, *content, **options):
        if self.name.startswith(".sempa-tmp-"):
            raise OSError(28, "No space left on device")
        return write(self, *content, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ResourceError, match="No space left"):
        embed_to_file(encoder(), TEXTS[:3], out, file_format=file_format)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_place_that_cannot_be_written_is_a_resource_error(tmp_path, file_format):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResourceError, match="cannot write"):
        written(tmp_path / "file", file_format)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_of_temporary_files_is_said(monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_error):
            return None

        def write(self, _content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    with pytest.raises(ResourceError, match="No space left"):
        spool(iter([(["a"], np.ones((1, 2), np.float32))]), 2)


@pytest.mark.parametrize("file_format", FORMATS)
def test_windows_are_let_go_one_by_one(tmp_path, file_format):
    alive = []

    def windows():
        for _ in range(9):
            window = Window(["a"] * 5, np.ones((5, 4), np.float32), line_ids(["a"] * 5))
            alive.append(weakref.ref(window.vectors))
            assert sum(each() is not None for each in alive) <= 2
            yield window

    if file_format == "npy":
        store.write_npy(tmp_path / "a.npy", tmp_path / "a.ids.npy", windows(), 4)
    else:
        WRITERS[file_format](tmp_path / f"a.{file_format}", windows(), 4, lambda: "{}")
    assert len(alive) == 9


@pytest.mark.parametrize("file_format", ["npy", "npz", "safetensors", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, file_format):
    """20,000 vectors of 2 kB are 40 MB; a window of them is 1 MB."""
    block = np.random.default_rng(3).standard_normal((500, 512)).astype(np.float32)
    texts = [f"line {number}" for number in range(500)]
    windows = (Window(texts, block, line_ids(texts)) for _ in range(40))
    about = json.dumps({"count": 20_000, "dim": 512, "normalize": True})
    path = tmp_path / f"a.{file_format}"
    sidecar_path(path).write_text(about)
    tracemalloc.start()
    try:
        if file_format == "npy":
            store.write_npy(path, tmp_path / "a.ids.npy", windows, 512)
        else:
            WRITERS[file_format](path, windows, 512, lambda: about)
        assert len(read_dense(path).vectors) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


# Their names


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        *((f"a.{name}", None, name) for name in FORMATS),
        ("a.txt.npy", None, "npy"),
        ("a.npy", "jsonl", "jsonl"),
        ("a", "npy", "npy"),
    ],
)
def test_the_format_goes_by_the_wish_then_by_the_name(tmp_path, name, wanted, found):
    assert format_of(tmp_path / name, wanted) == found


@pytest.mark.parametrize(("name", "wanted"), [("a.txt", None), ("a", None), ("a.npy", "arrow")])
def test_unknown_formats_are_refused(tmp_path, name, wanted):
    with pytest.raises(UsageError, match="unknown output format") as caught:
        format_of(tmp_path / name, wanted)
    fix = "--format npy, npz, jsonl, csv, safetensors or parquet"
    assert caught.value.problems[0].fix == fix


def test_parquet_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_file, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="parquet needs pyarrow") as caught:
        format_of(tmp_path / "a.parquet", None)
    assert caught.value.problems[0].fix == "pip install 'sempa-mlx[parquet]'"


def test_vectors_and_codes_are_told_apart(tmp_path):
    for file_format in FORMATS:
        assert not holds_codes(written(tmp_path, file_format))
    np.savez(tmp_path / "b.npz", indptr=np.zeros(1))
    assert holds_codes(tmp_path / "b.npz")
    (tmp_path / "b.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="neither vectors nor codes"):
        holds_codes(tmp_path / "b.npz")
