"""Rows whose beginnings run once have the last states that they have as a whole."""

import functools

import mlx.core as mx
import numpy as np
import pytest

from sempa_mlx.model.begun import begin
from sempa_mlx.model.forward import GROUPED_MASK_RANK, PLAIN_MASK_RANK, final_hidden
from sempa_mlx.model.hidden_states import StateReader
from tests.tiny import MISFITS, SHARING, tiny_loaded, tiny_model

model_of = functools.cache(tiny_model)
TRUNK = (5, 9, 17)


@pytest.fixture(autouse=True)
def _cheap_passes(monkeypatch):
    """Make a pass cost little, as on no device: these rows are few."""
    monkeypatch.setattr("sempa_mlx.model.begun.tokens_of_a_pass", lambda: 4)


def rows_with_beginnings():
    """Return rows of many lengths: some share one of two beginnings, some share none."""
    random = np.random.default_rng(0)
    begins = [(), (20, 21, 22, 23), (20, 21, 30, 31, 32, 33, 34)]
    rows = []
    for index in range(66):
        rest = random.integers(40, 120, 1 + index % 7).tolist()
        rows.append((*TRUNK, *begins[index % 3], *rest))
    return rows


def whole(model, rows):
    return np.array(mx.concatenate([final_hidden(model, [row])[:, -1] for row in rows]))


def ends(begun, model, rows):
    rest = begun.rest(rows)
    states = np.array(begun.run(model, rest))
    return np.stack([each[len(row) - 1] for each, row in zip(states, rest, strict=True)])


def rank_of(kind):
    return GROUPED_MASK_RANK if kind == "gemma2" else PLAIN_MASK_RANK


@pytest.mark.parametrize("kind", SHARING)
def test_last_states_are_those_of_whole_rows(kind):
    model, rows = model_of(kind), rows_with_beginnings()
    begun = begin(model, rows, rank_of(kind))
    assert {length > 0 for length in begun.lengths} == {True, False}
    np.testing.assert_allclose(ends(begun, model, rows), whole(model, rows), atol=2e-5)


def test_some_of_the_rows_can_be_run_in_any_order():
    model, rows = model_of("llama"), rows_with_beginnings()
    begun = begin(model, rows, PLAIN_MASK_RANK)
    without = [index for index, length in enumerate(begun.lengths) if not length]
    for indices in ([40, 2, 17], without[:3]):
        some = [rows[index] for index in indices]
        found = ends(begun.of(indices), model, some)
        np.testing.assert_allclose(found, whole(model, some), atol=2e-5)


def test_nothing_is_begun_where_it_saves_nothing():
    rows = [(*TRUNK, index, 1, 2, 3) for index in range(20, 100)]
    assert begin(model_of("llama"), rows, PLAIN_MASK_RANK) is None
    assert begin(model_of("llama"), [row[3:] for row in rows], PLAIN_MASK_RANK) is None


def test_fewer_tokens_are_run(monkeypatch):
    model, rows = tiny_model("llama"), rows_with_beginnings()
    backbone, sizes = type(model.model), []
    original = backbone.__call__

    def counted(self, tokens, *args, **options):
        sizes.append(tokens.size)
        return original(self, tokens, *args, **options)

    monkeypatch.setattr(backbone, "__call__", counted)
    rows = [row for row in rows if len(row) - len(TRUNK) in (6, 10)]  # no padding either way
    begun = begin(model, rows, PLAIN_MASK_RANK)
    ends(begun, model, rows)
    real = sum(len(row) - done for row, done in zip(rows, begun.tokens(), strict=True))
    assert sum(sizes) < 0.8 * sum(map(len, rows))
    assert sum(sizes) >= real


@pytest.mark.parametrize("kind", [*SHARING, *MISFITS])
def test_readers_find_the_same_ends_with_and_without(kind):
    loaded = tiny_loaded(kind)
    reader, rows = StateReader(loaded), rows_with_beginnings()
    begun = reader.begin(rows)
    assert (begun is not None) == (kind in SHARING)
    expected = whole(loaded.model, rows)
    np.testing.assert_allclose(np.array(reader.read_ends(rows, begun)), expected, atol=2e-5)
    np.testing.assert_allclose(np.array(reader.read_ends(rows)), expected, atol=2e-5)
    np.testing.assert_allclose(np.array(reader.read_ends(rows[:5])), expected[:5], atol=2e-5)
