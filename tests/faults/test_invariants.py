"""Invariants that no other test states.

Elsewhere: order, batches (tests/encoder/test_encoder.py); losses (tests/training/test_pairwise.py,
test_objectives.py); Spearman (tests/evaluation/test_stats.py); settings (tests/test_config.py);
rows (tests/data/test_readers.py); epochs (tests/training/test_schedule.py, tests/data/
test_batching.py); an adapter at scale 0 (tests/test_export.py, tests/model/test_lora.py).
"""

import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.line_ids import line_ids
from sempa_mlx.encoder.sparse_store import SparseStore, read_store, write_store
from sempa_mlx.encoder.text_files import write_jsonl
from sempa_mlx.encoder.vector_form import Window
from tests.encoder.codes import drawn_codes

ANY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=4)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def encoder(space):
    return Encoder.load(space / "run")


@ANY
@given(texts, texts)
def test_lists_together_have_the_vectors_of_each(encoder, left, right):
    parts = [encoder.encode(left), encoder.encode(right)]
    np.testing.assert_allclose(encoder.encode(left + right), np.concatenate(parts), atol=1e-5)


@ANY
@given(arrays(np.float32, (3, 4), elements=floats))
def test_lines_of_json_read_back_to_the_same_float32(vectors):
    stream = io.StringIO()
    names = ["a", "b", "c"]
    write_jsonl(stream, [Window(names, vectors, line_ids(names))])
    rows = [json.loads(line)["embedding"] for line in stream.getvalue().splitlines()]
    np.testing.assert_array_equal(np.array(rows, dtype=np.float32), vectors)


@ANY
@given(
    st.integers(0, 99),
    st.sampled_from(["npz", "safetensors"]),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=5, max_size=5),
)
def test_codes_and_their_texts_read_back_as_they_were(tmp_path, seed, file_format, lines):
    path = tmp_path / f"a.{file_format}"
    write_store(path, SparseStore(drawn_codes(5, seed=seed), {}, tuple(lines)), file_format)
    first = read_store(path)
    assert first.texts == tuple(lines)
    write_store(path, first, file_format)
    again = read_store(path)
    assert (again.codes != first.codes).nnz == 0
    assert again.texts == first.texts
