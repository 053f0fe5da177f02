import functools
import io
import json

import numpy as np
import pytest

from sempa_mlx.encoder import store
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.encoder.store import embed_to_file, embed_to_stream, nearest
from sempa_mlx.errors import ResourceError
from tests.tiny import tiny_loaded

TEXTS = [f"Sentence {number} has {'very ' * (number % 4)}few words" for number in range(20)]
TEXTS[3:5] = ['tabs\tand "quotes" and \\ and \u2028 and 猫', ""]


@functools.cache
def encoder():
    return Encoder(tiny_loaded())


@pytest.fixture(params=[7, 20, 8192])
def window(request, monkeypatch):
    """Fewer texts than the file has, exactly as many, or more."""
    monkeypatch.setattr(store, "WINDOW", request.param)
    return request.param


def read_jsonl(path):
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def test_npy_holds_what_encode_returns(tmp_path, window):
    out = tmp_path / "vectors.npy"
    written = embed_to_file(encoder(), iter(TEXTS), out, file_format="npy")
    vectors = np.load(out)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_allclose(vectors, encoder().encode(TEXTS), atol=1e-6)
    assert (written.path, written.count, written.dim) == (out, 20, 32)
    assert written.num_truncated == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["vectors.ids.npy", "vectors.json", "vectors.npy"]


def test_npy_can_be_mapped_into_memory(tmp_path):
    embed_to_file(encoder(), TEXTS, tmp_path / "a.npy", file_format="npy")
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    np.testing.assert_array_equal(mapped, np.load(tmp_path / "a.npy"))


def test_the_file_beside_npy_says_what_made_it(tmp_path):
    settings = EncoderSettings(method="mean", truncate_dim=6)
    small = Encoder(encoder().loaded, settings)
    out, adapter = tmp_path / "a.npy", tmp_path / "b" / ".." / "c"
    written = embed_to_file(small, TEXTS, out, file_format="npy", adapter_path=adapter)
    assert written.sidecar == tmp_path / "a.json"
    described = json.loads(written.sidecar.read_text())
    found_again = {"vectors": small.vectors_key, "adapter_path": str(tmp_path.resolve() / "c")}
    facts = {"count": 20, "source": None, "ids": described["ids"]}
    assert described == {**facts, **small.describe(), **found_again}
    assert (described["dim"], described["method"]) == (6, "mean")
    assert np.load(tmp_path / "a.npy").shape == (20, 6)


def test_jsonl_reads_back_to_the_same_float32(tmp_path, window):
    out = tmp_path / "vectors.jsonl"
    written = embed_to_file(encoder(), iter(TEXTS), out, file_format="jsonl")
    rows = read_jsonl(out)
    assert [row["text"] for row in rows] == TEXTS
    found = np.array([row["embedding"] for row in rows])
    npy = embed_to_file(encoder(), TEXTS, tmp_path / "a.npy", file_format="npy").path
    np.testing.assert_array_equal(found.astype(np.float32), np.load(npy))
    assert written.sidecar == tmp_path / "vectors.jsonl.json"
    assert written.count == 20


def test_a_stream_gets_the_lines_of_the_file(tmp_path, window):
    stream = io.StringIO()
    assert embed_to_stream(encoder(), iter(TEXTS), stream) == 0
    embed_to_file(encoder(), TEXTS, tmp_path / "a.jsonl", file_format="jsonl")
    assert stream.getvalue().encode() == (tmp_path / "a.jsonl").read_bytes()


def test_cut_texts_are_counted_over_all_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "WINDOW", 7)
    short = Encoder(encoder().loaded, EncoderSettings(max_tokens=48))
    long = "one word after the other " * 5
    texts = [long, *TEXTS[:9], long + "a", long]
    assert embed_to_file(short, texts, tmp_path / "a.npy", file_format="npy").num_truncated == 3
    assert embed_to_stream(short, texts, io.StringIO()) == 3


def test_progress_counts_every_text(tmp_path, window):
    done = []
    embed_to_file(encoder(), TEXTS, tmp_path / "a.npy", file_format="npy", on_progress=done.append)
    assert sum(done) == 20


def test_no_more_than_a_window_is_taken_from_the_source(monkeypatch):
    monkeypatch.setattr(store, "WINDOW", 7)
    taken = []

    class Stream(io.StringIO):
        def write(self, text):
            assert len(taken) <= 7 * (1 + self.getvalue().count("\n") // 7)
            return super().write(text)

    source = (taken.append(text) or text for text in TEXTS)
    embed_to_stream(encoder(), source, Stream())
    assert len(taken) == 20


def test_no_texts_make_an_empty_array(tmp_path):
    embed_to_file(encoder(), [], tmp_path / "a.npy", file_format="npy")
    assert np.load(tmp_path / "a.npy").shape == (0, 32)


def test_a_folder_that_is_not_there_is_made(tmp_path):
    embed_to_file(encoder(), TEXTS, tmp_path / "new" / "a.npy", file_format="npy")
    assert (tmp_path / "new" / "a.json").is_file()


def test_a_place_that_cannot_be_written_is_a_resource_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResourceError, match="cannot write"):
        embed_to_file(encoder(), TEXTS, tmp_path / "file" / "a.npy", file_format="npy")
    assert (tmp_path / "file").read_text() == "not a folder"


def test_nearest_by_hand():
    """Unit vectors at 0, 90, 180 and 45 degrees, and the query at 10 degrees."""
    angles = np.radians([0, 90, 180, 45])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query = np.array([np.cos(np.radians(10)), np.sin(np.radians(10))], dtype=np.float32)
    found = nearest(vectors, query, 3)
    assert [index for index, _ in found] == [0, 3, 1]
    expected = np.cos(np.radians([10, 35, 80]))
    np.testing.assert_allclose([similarity for _, similarity in found], expected, atol=1e-6)


def test_nearest_of_fewer_rows_than_asked_for():
    assert [index for index, _ in nearest(np.eye(2, dtype=np.float32), np.array([0, 1]), 9)] == [
        1,
        0,
    ]


def test_equally_near_rows_keep_their_order():
    """More than the 16 that numpy sorts by insertion, which happens to be stable."""
    vectors = np.tile(np.eye(2, dtype=np.float32), (50, 1))
    found = [index for index, _ in nearest(vectors, vectors[0], 100)]
    assert found == [*range(0, 100, 2), *range(1, 100, 2)]
