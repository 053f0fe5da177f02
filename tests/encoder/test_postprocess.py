"""ABTT and whitening against a plain SVD of the centred vectors."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.fitting import fit_after
from sempa_mlx.encoder.postprocess import fit_post, parse_kind, read_post, write_post
from sempa_mlx.encoder.settings import POST_FILE, SETTINGS_FILE, EncoderSettings, read_settings
from sempa_mlx.errors import DataError, ModelError, ResourceError, UsageError
from tests.tiny import tiny_loaded

FEW = settings(max_examples=30, deadline=None, derandomize=True)
WORDS = ("cat", "dog", "runs", "sleeps", "stone", "warm", "two", "grass", "reads", "17")
TEXTS = [f"The {a} {b} on the {c}" for a in WORDS for b in WORDS for c in WORDS[:2]]
loaded_of = functools.cache(tiny_loaded)


def vectors(count=200, dim=8, seed=0):
    """Vectors in a narrow cone: a large mean, and directions of very different spread."""
    random = np.random.default_rng(seed)
    spread = np.geomspace(30, 0.1, dim)
    turn = np.linalg.qr(random.standard_normal((dim, dim)))[0]
    raw = random.standard_normal((count, dim)) * spread @ turn + 50 * random.standard_normal(dim)
    return raw.astype(np.float32)


def by_svd(raw):
    centred = raw.astype(np.float64) - raw.astype(np.float64).mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    return centred, sizes / np.sqrt(len(raw)), directions


@FEW
@given(seed=st.integers(0, 99), dim=st.integers(2, 12), data=st.data())
def test_abtt_takes_the_leading_directions_away(seed, dim, data):
    raw = vectors(dim=dim, seed=seed)
    components = data.draw(st.integers(1, dim - 1))
    centred, _, directions = by_svd(raw)
    expected = centred.copy()
    for direction in directions[:components]:
        expected -= np.outer(expected @ direction, direction)
    found = fit_post(raw, "abtt", components, "key").apply(raw)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-3)


@FEW
@given(seed=st.integers(0, 99), dim=st.integers(2, 12))
def test_whitening_gives_every_direction_variance_1(seed, dim):
    raw = vectors(dim=dim, seed=seed)
    centred, sizes, directions = by_svd(raw)
    expected = centred @ directions.T / sizes
    found = fit_post(raw, "whiten", 0, "key").apply(raw)
    assert found.shape == raw.shape
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=5e-3)
    np.testing.assert_allclose(np.cov(found.T, bias=True), np.eye(dim), atol=1e-2)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-2)


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_standardisation_gives_every_dimension_mean_0_and_variance_1(seed, dim):
    raw = vectors(dim=dim, seed=seed)
    mapped = fit_post(raw, "standardize", 0, "key").apply(raw)
    np.testing.assert_allclose(mapped.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(mapped.std(axis=0), 1, rtol=1e-3)
    exact = raw.astype(np.float64)
    np.testing.assert_allclose(mapped, (exact - exact.mean(axis=0)) / exact.std(axis=0), atol=1e-3)


def test_signs_are_settled():
    fit = fit_post(vectors(), "whiten", 0, "key")
    largest = np.abs(fit.basis).argmax(axis=1)
    assert (fit.basis[np.arange(8), largest] > 0).all()


def test_a_direction_without_variance_does_not_blow_up():
    raw = vectors()
    raw[:, 3] = 7.0
    found = fit_post(raw, "whiten", 0, "key").apply(raw)
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 100


@pytest.mark.parametrize(
    ("kind", "components", "count"), [("whiten", 0, 8), ("abtt", 2, 2), ("standardize", 0, 1)]
)
def test_too_few_texts_are_refused(kind, components, count):
    fit_post(vectors(count + 1), kind, components, "key")
    with pytest.raises(DataError, match="too few"):
        fit_post(vectors(count), kind, components, "key")


@pytest.mark.parametrize("kind", ["whiten", "abtt", "standardize"])
def test_texts_of_one_vector_or_none_fit_nothing(kind):
    raw = vectors()
    with pytest.raises(DataError, match="one embedding"):
        fit_post(np.repeat(raw[:1], len(raw), axis=0), kind, 1, "key")
    raw[3, 2] = np.nan
    with pytest.raises(DataError, match="NaN"):
        fit_post(raw, kind, 1, "key")


def test_not_every_direction_can_be_taken_away():
    with pytest.raises(UsageError, match="8 of 8 directions"):
        fit_post(vectors(), "abtt", 8, "key")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("abtt", ("abtt", 1)), ("abtt:3", ("abtt", 3)), ("whiten", ("whiten", 0))],
)
def test_kinds(text, expected):
    assert parse_kind(text) == expected


@pytest.mark.parametrize("text", ["abt", "abtt:", "abtt:0", "whiten:3", "ABTT", "", "abtt:3x"])
def test_other_kinds_are_refused(text):
    with pytest.raises(UsageError, match="no post-processing"):
        parse_kind(text)


# With an encoder


def encoder_of(**changes):
    return Encoder(loaded_of("llama"), EncoderSettings(**changes))


def fitted(encoder, tmp_path, kind="abtt", components=1, texts=TEXTS):
    fit, _ = fit_after(encoder, texts, kind, components, folder=tmp_path)
    return Encoder(encoder.loaded, replace(encoder.settings, post=fit))


@pytest.mark.parametrize("method", ["prompteol", "cp", "mean"])
@pytest.mark.parametrize(
    ("kind", "components"), [("abtt", 1), ("abtt", 3), ("standardize", 0), ("whiten", 0)]
)
def test_encoded_vectors_are_mapped_and_then_made_unit_length(tmp_path, method, kind, components):
    plain = encoder_of(method=method, normalize=False, layer=-1)
    encoder = fitted(encoder_of(method=method, layer=-1), tmp_path, kind, components)
    centred, sizes, directions = by_svd(plain.encode(TEXTS))
    if kind == "abtt":
        expected = centred - centred @ directions[:components].T @ directions[:components]
    elif kind == "standardize":
        expected = centred / centred.std(axis=0)
    else:
        expected = centred @ directions.T / sizes
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = encoder.encode(TEXTS)
    # Cosines do not depend on the signs of directions.
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3)


def test_cutting_keeps_the_strongest_directions(tmp_path):
    whole = fitted(encoder_of(normalize=False), tmp_path, "whiten", 0)
    short = Encoder(whole.loaded, replace(whole.settings, truncate_dim=4))
    assert short.dim == 4
    np.testing.assert_array_equal(short.encode(TEXTS[:5]), whole.encode(TEXTS[:5])[:, :4])


def test_a_fit_is_made_once_and_found_again(tmp_path, monkeypatch):
    encoder = encoder_of()
    first, path = fit_after(encoder, TEXTS, "abtt", 1, folder=tmp_path)
    monkeypatch.setattr(encoder, "read", None)
    second, again = fit_after(encoder, [*TEXTS, *TEXTS, "", " "], "abtt", 1, folder=tmp_path)
    assert second == first
    assert again == path
    np.testing.assert_array_equal(second.basis, first.basis)
    assert first.num_texts == len(TEXTS)


@pytest.mark.parametrize(
    ("kind", "components", "texts", "changes"),
    [
        ("whiten", 0, TEXTS, {}),
        ("abtt", 2, TEXTS, {}),
        ("abtt", 1, TEXTS[1:], {}),
        ("abtt", 1, TEXTS, {"method": "mean"}),
        ("abtt", 1, TEXTS, {"layer": 1}),
        ("abtt", 1, TEXTS, {"max_tokens": 18}),
    ],
)
def test_whatever_matters_gets_a_fit_of_its_own(tmp_path, kind, components, texts, changes):
    _, before = fit_after(encoder_of(), TEXTS, "abtt", 1, folder=tmp_path)
    _, after = fit_after(encoder_of(**changes), texts, kind, components, folder=tmp_path)
    assert after != before


def test_a_damaged_fit_is_made_anew(tmp_path):
    first, path = fit_after(encoder_of(), TEXTS, "abtt", 1, folder=tmp_path)
    path.write_bytes(path.read_bytes()[:-7])
    second, _ = fit_after(encoder_of(), TEXTS, "abtt", 1, folder=tmp_path)
    assert second == first
    assert read_post(path) == first


def test_a_fit_belongs_to_one_way_of_making_vectors(tmp_path):
    fit = fitted(encoder_of(), tmp_path).settings.post
    Encoder(loaded_of("llama"), EncoderSettings(layer=3, normalize=False, post=fit))
    for change in ({"method": "mean"}, {"layer": 1}, {"max_tokens": 18}):
        with pytest.raises(UsageError, match="belongs to other vectors"):
            encoder_of(post=fit, **change)
    with pytest.raises(UsageError, match="belongs to other vectors"):
        Encoder(tiny_loaded(seed=1), EncoderSettings(post=fit))


def test_settings_with_a_fit_come_back(tmp_path):
    encoder = fitted(encoder_of(), tmp_path / "fits", "whiten", 0)
    encoder.save_settings(tmp_path)
    found = read_settings(tmp_path)
    assert found.post == encoder.settings.post
    stored = json.loads((tmp_path / SETTINGS_FILE).read_text())
    assert stored["post"] == {
        "kind": "whiten",
        "components": 0,
        "num_texts": len(TEXTS),
        "fit": encoder.settings.post.digest,
    }
    again = Encoder(loaded_of("llama"), found)
    np.testing.assert_array_equal(again.encode(TEXTS[:9]), encoder.encode(TEXTS[:9]))


def test_another_fit_beside_the_settings_is_refused(tmp_path):
    fitted(encoder_of(), tmp_path / "fits").save_settings(tmp_path)
    other = fitted(encoder_of(), tmp_path / "fits", texts=TEXTS[5:])
    write_post(tmp_path / POST_FILE, other.settings.post)
    with pytest.raises(ModelError, match=r"not the map that encoder\.json names"):
        read_settings(tmp_path)
    (tmp_path / POST_FILE).unlink()
    with pytest.raises(ModelError, match="no such file"):
        read_settings(tmp_path)


@pytest.mark.parametrize("place", ["mean", "basis"])
def test_changed_numbers_in_a_file_are_noticed(tmp_path, place):
    fit = fit_post(vectors(), "abtt", 1, "key")
    changed = getattr(fit, place).copy()
    changed.flat[3] += 0.5
    path = tmp_path / "fit.safetensors"
    write_post(path, replace(fit, **{place: changed}))
    with pytest.raises(ModelError, match="damaged"):
        read_post(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_files_that_are_no_fit_are_refused(tmp_path, content):
    path = tmp_path / "fit.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a fitted map"):
        read_post(path)


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        fit_after(encoder_of(), TEXTS, "abtt", 1, folder=tmp_path / "file")
